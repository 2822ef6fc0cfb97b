// Choose a recipe, fill its first screen, see what it will do. All settings come from the recipe's schema.
Tuner.recipe = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, s, icon, slots, file, named, newest } = Tuner;
    const told = newest();
    const part = slots();
    const inputs = new Map();
    // What is being typed is sent after a short rest, or at once when the field is left.
    const pending = new Map();
    const send = (key, value) => {
      window.clearTimeout(pending.get(key));
      pending.delete(key);
      trigger("set", { key, value });
    };
    const set = (key, value, soon) => {
      window.clearTimeout(pending.get(key));
      if (soon)
        pending.set(
          key,
          window.setTimeout(() => send(key, value), 350),
        );
      else send(key, value);
    };

    const control = (f) => {
      const id = "f-" + f.key.replace(/\W/g, "-");
      let node;
      if (f.kind === "bool" || f.kind === "group") {
        node = h("input", { type: "checkbox", id, checked: f.value });
        node.addEventListener("change", () => set(f.key, node.checked));
      } else if (f.kind === "list") {
        node = h(
          "div",
          { class: "t-row", role: "group", id, "aria-label": f.label },
          Array.from({ length: f.value }, (_, i) =>
            h(
              "button",
              { class: "t-button t-small", type: "button", onclick: () => set(f.key, i) },
              icon("close", 12),
              `Remove ${f.label.toLowerCase()} ${i + 1}`,
            ),
          ),
          h(
            "button",
            { class: "t-button t-small", type: "button", onclick: () => set(f.key, "add") },
            icon("plus", 12),
            f.value ? "Add another" : "Add one",
          ),
        );
      } else if (f.kind === "choice") {
        node = h(
          "select",
          { class: "t-input", id },
          f.choices.map((c) =>
            h(
              "option",
              { value: c, selected: c === f.value, title: f.reasons[c], translate: c && !f.reasons[c] ? "no" : null },
              (c || "automatic") + (f.reasons[c] ? " (not for this family)" : ""),
            ),
          ),
        );
        node.addEventListener("change", () => set(f.key, node.value));
      } else if (f.kind === "lines" || f.kind === "yaml") {
        node = h("textarea", {
          class: "t-input" + (f.kind === "yaml" ? " t-mono" : ""),
          id,
          rows: f.kind === "lines" ? Math.max(3, Math.min(6, String(f.value).split("\n").length)) : 3,
          value: f.value,
          spellcheck: f.kind === "yaml" ? "false" : "true",
        });
        node.addEventListener("input", () => set(f.key, node.value, true));
        node.addEventListener("change", () => set(f.key, node.value));
      } else {
        node = h("input", {
          class: "t-input",
          type: "text",
          id,
          inputmode: f.kind === "number" ? "decimal" : null,
          value: f.value,
          placeholder: f.empty ? "automatic" : "",
          list: f.choices.length ? id + "-list" : null,
        });
        node.addEventListener("input", () => set(f.key, node.value, true));
        node.addEventListener("change", () => set(f.key, node.value));
      }
      node.setAttribute("aria-describedby", id + "-d");
      node.dataset.key = f.key;
      inputs.set(f.key, node);
      return node;
    };
    // What may be typed in, and what the recipe says.
    const range = (f) => {
      const said = [];
      if (f.low !== null && f.high !== null) said.push(`${f.low} to ${f.high}`);
      else if (f.low !== null && f.above) said.push(`above ${f.low}`);
      else if (f.low !== null) said.push(`from ${f.low}`);
      else if (f.high !== null) said.push(`up to ${f.high}`);
      if (f.usual) said.push(`recipe: ${f.usual}`);
      return said.join(" · ");
    };
    const ticked = (f) => f.kind === "bool" || f.kind === "group";
    const labelled = (f) => {
      const id = "f-" + f.key.replace(/\W/g, "-");
      const node = control(f);
      const reset = h(
        "button",
        {
          class: "t-link t-reset",
          type: "button",
          title: `The recipe says: ${f.own === "" ? "automatic" : f.own}`,
          "aria-label": `Reset ${f.label}`,
          onclick: () => trigger("reset", { key: f.key }),
        },
        "reset",
      );
      const wide = ["yaml", "lines", "list"].includes(f.kind);
      return h(
        "div",
        {
          class:
            "t-field" +
            (wide ? " t-wide" : "") +
            (ticked(f) ? " t-check" : "") +
            (f.changed ? " t-changed" : ""),
          "data-field": f.key,
        },
        h(
          "div",
          { class: "t-label" },
          f.kind === "list" ? h("span", {}, f.label) : h("label", { for: id }, f.label),
          reset,
        ),
        node,
        !ticked(f) && f.choices.length && f.kind !== "choice"
          ? h(
              "datalist",
              { id: id + "-list" },
              f.choices.map((c) => h("option", { value: c })),
            )
          : "",
        h("small", { id: id + "-d" }, f.description, h("span", { class: "t-range" }, range(f)), h("em", {}, f.cost)),
      );
    };
    // Values that Python changed go into inputs that nobody is typing in.
    const refresh = (fields) => {
      for (const f of fields) {
        const node = inputs.get(f.key);
        if (!node || f.kind === "list") continue;
        const box = node.closest(".t-field");
        if (box) box.classList.toggle("t-changed", f.changed);
        if (node === document.activeElement || pending.has(f.key)) continue;
        if (node.type === "checkbox") node.checked = f.value;
        else if (node.value !== String(f.value)) node.value = f.value;
      }
    };
    const shape = (fields) => fields.map((f) => [
        f.key,
        f.kind,
        f.choices,
        f.description,
        f.own,
        f.reasons,
        f.kind === "list" ? f.value : null,
      ]);

    // What a recipe of the user's own says of itself is the user's text.
    const whose = (id) => (String(id).startsWith("own:") ? "no" : null);
    const card = (c, chosen) =>
      h(
        "button",
        {
          class: "t-recipe" + (c.id === chosen ? " t-on" : "") + (c.reason ? " t-greyed" : ""),
          type: "button",
          "aria-pressed": String(c.id === chosen),
          "data-recipe": c.id,
          "data-goals": c.goals.join(" "),
          "data-text": [c.name, c.model, c.description, c.foot.join(" ")].join(" ").toLowerCase(),
          "aria-disabled": c.reason ? "true" : null,
          onclick: () => !c.reason && trigger("choose", { id: c.id }),
        },
        c.pictures.length
          ? h(
              "span",
              { class: "t-recipe-art" },
              c.pictures.map((p) => h("img", { src: file(p), alt: "", loading: "lazy" })),
            )
          : h("span", { class: "t-monogram", "aria-hidden": "true" }, c.mono),
        h(
          "span",
          { class: "t-recipe-text" },
          h("strong", { translate: "no" }, c.name),
          c.model && h("span", { class: "t-recipe-model", translate: "no" }, c.model),
          h("span", { class: "t-recipe-desc", title: c.description, translate: whose(c.id) }, c.reason || c.description),
          h(
            "span",
            { class: "t-recipe-foot" },
            c.foot.map((t) => h("span", { title: t }, t)),
          ),
        ),
      );

    const problem = (p) =>
      h(
        "li",
        { class: "t-problem t-" + p.level },
        h("span", { class: "t-dot", "aria-hidden": "true" }),
        h(
          "div",
          {},
          h("p", {}, p.text),
          h(
            "div",
            { class: "t-ways" },
            (p.remedies || []).map((r) =>
              h(
                "button",
                { class: "t-button t-small", type: "button", onclick: () => trigger("remedy", { remedy: r.values }) },
                r.text,
              ),
            ),
            p.go && h("button", { class: "t-button t-small", type: "button", onclick: () => Tuner.go(p.go) }, "Write captions"),
            p.at && h("button", { class: "t-link", type: "button", onclick: () => reveal(p.at) }, "Show the setting"),
          ),
        ),
      );
    // Opens the drawer a setting lies in, and goes there.
    const reveal = (key) => {
      const node = inputs.get(key);
      if (!node || !node.isConnected) return;
      seek.value = "";
      search();
      const inside = node.closest("details");
      if (inside) inside.open = true;
      node.scrollIntoView({ block: "center" });
      node.focus();
    };
    const seek = h("input", {
      type: "search",
      class: "t-input",
      placeholder: "Find a setting",
      "aria-label": "Find a setting",
    });
    // While something is looked for, only what fits is shown, and drawers that have it are open.
    const search = () => {
      const wanted = seek.value.trim().toLowerCase();
      for (const name of ["advanced", "expert"]) {
        const inside = part.node(name).querySelector("details");
        if (!inside) continue;
        inside.querySelectorAll(".t-field").forEach((n) => {
          n.hidden = !(n.dataset.field + " " + n.textContent).toLowerCase().includes(wanted);
        });
        inside.querySelectorAll("[data-section]").forEach((n) => {
          n.hidden = !n.querySelector(".t-field:not([hidden])");
        });
        const found = inside.querySelector(".t-field:not([hidden])");
        inside.hidden = !found;
        if (wanted && found && !inside.open) {
          inside.open = true;
          inside.dataset.sought = "1";
        } else if (!wanted && inside.dataset.sought) {
          inside.open = false;
          delete inside.dataset.sought;
        }
      }
    };
    seek.addEventListener("input", search);

    let goal = "";
    const filter = () => {
      const wanted = find.value.trim().toLowerCase();
      root.querySelectorAll(".t-recipe").forEach((n) => {
        const fits = !goal || n.dataset.goals.split(" ").includes(goal) || n.classList.contains("t-on");
        n.hidden = !fits || !n.dataset.text.includes(wanted);
      });
      root.querySelectorAll(".t-shelf .t-group").forEach((n) => {
        n.hidden = !n.querySelector(".t-recipe:not([hidden])");
      });
      root.querySelectorAll(".t-goal").forEach((n) => {
        n.classList.toggle("t-on", n.dataset.goal === goal);
        n.setAttribute("aria-pressed", String(n.dataset.goal === goal));
      });
    };
    const chip = (g) =>
      h(
        "button",
        {
          class: "t-goal",
          type: "button",
          "data-goal": g.id,
          "aria-pressed": "false",
          onclick: () => {
            goal = goal === g.id ? "" : g.id;
            filter();
          },
        },
        g.title,
      );

    const plot = (d) => {
      const [wide, high] = [320, 84];
      const top = Math.max(...d.points.map((p) => p[1])) || 1;
      const at = d.points.map(([x, y]) => `${(x * wide).toFixed(1)},${(high - (y / top) * (high - 4)).toFixed(1)}`);
      return h(
        "figure",
        { class: "t-density" },
        h("figcaption", {}, h("strong", {}, "Noise levels that are trained"), h("span", { class: "t-quiet" }, d.text)),
        s(
          "svg",
          { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", role: "img", "aria-label": "Density of t: " + d.text },
          s("polygon", { points: `0,${high} ${at.join(" ")} ${wide},${high}` }),
          s("polyline", { points: at.join(" ") }),
        ),
        h("div", { class: "t-axis" }, h("span", {}, "clean, t = 0"), h("span", {}, "noise, t = 1")),
      );
    };

    // A file of the user's own is read here, in the browser, and sent as text.
    const importer = () => {
      const text = h("textarea", {
        class: "t-input t-mono",
        rows: 12,
        id: "import-text",
        spellcheck: "false",
        "aria-label": "Recipe as YAML",
      });
      const pick = h("input", { type: "file", accept: ".yaml,.yml", "aria-label": "Recipe file" });
      pick.addEventListener("change", async () => {
        if (pick.files[0]) text.value = await pick.files[0].text();
      });
      const bring = h("button", { class: "t-button", type: "button" }, "Import");
      const close = Tuner.modal("Import a recipe", h("div", { class: "t-import" }, pick, text, bring));
      bring.addEventListener("click", () => {
        trigger("bring", { text: text.value });
        close();
      });
    };
    const download = (name, text) => {
      const url = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
      const link = h("a", { href: url, download: name });
      document.body.append(link);
      link.click();
      link.remove();
      window.setTimeout(() => URL.revokeObjectURL(url), 1000);
    };
    const action = (text, onclick) => h("button", { class: "t-button t-small", type: "button", onclick }, text);

    const find = h("input", {
      type: "search",
      class: "t-input",
      placeholder: "Find a recipe",
      "aria-label": "Find a recipe",
    });
    find.addEventListener("input", filter);
    root.append(
      h("aside", { class: "t-shelf", "aria-label": "Recipes" }, part.node("find"), part.node("goals"), part.node("cards")),
      h(
        "section",
        { class: "t-form", "aria-label": "Settings" },
        part.node("head"),
        part.node("basic", "div", { class: "t-fields" }),
        part.node("dial"),
        part.node("length", "div", { class: "t-fields" }),
        part.node("watch", "div", { class: "t-fields" }),
        part.node("density"),
        h("div", { class: "t-seek" }, seek),
        part.node("advanced"),
        part.node("expert"),
        part.node("changes"),
        part.node("yaml"),
      ),
      h(
        "aside",
        { class: "t-side", "aria-label": "What will happen" },
        part.node("facts"),
        part.node("problems"),
        part.node("why"),
      ),
    );

    const drawer = (name, title, text, groups) => {
      const changed = groups.flatMap((g) => g.fields).filter((f) => f.changed).length;
      const open = part.node(name).querySelector("details");
      return h(
        "details",
        { class: "t-drawer", open: open ? open.open : false, "data-drawer": name },
        h(
          "summary",
          {},
          icon("chevron"),
          h("strong", {}, title),
          h("span", { class: "t-quiet" }, text),
          h("span", { class: "t-count" }, changed ? `${changed} changed` : ""),
        ),
        groups.map((g) => h("div", { "data-section": "" }, h("h4", {}, g.title), h("div", { class: "t-fields" }, g.fields.map(labelled)))),
      );
    };
    // A part that is drawn anew keeps the focus on the setting that had it.
    const draw = (name, data, make) => {
      const held = document.activeElement && root.contains(document.activeElement) && document.activeElement.dataset.key;
      const drawn = part.draw(name, data, make);
      if (drawn && held && !root.contains(document.activeElement) && inputs.get(held)) inputs.get(held).focus();
      return drawn;
    };
    return (v) => {
      part.draw("goals", [v.many, v.goals], ([many, goals]) => many && h("div", { class: "t-goals" }, goals.map(chip)));
      part.draw("find", v.many, (many) => many && find);
      part.draw("cards", [v.groups, v.chosen], ([groups, chosen]) =>
        groups.map((g) =>
          h(
            "div",
            { class: "t-group" },
            h("h3", {}, g.title),
            g.cards.map((c) => card(c, chosen)),
          ),
        ),
      );
      filter();
      part.draw("density", v.density, (d) => d.points && plot(d));
      part.draw("head", [v.title, v.description, v.chosen], ([title, text, chosen]) => [
        h("h2", { translate: "no" }, title),
        h("p", { class: "t-quiet", translate: whose(chosen) }, text),
      ]);
      part.draw("basic", shape(v.basic), () => v.basic.map(labelled));
      part.draw("length", shape(v.length), () => v.length.map(labelled));
      part.draw("watch", shape(v.watch), () => v.watch.map(labelled));
      part.draw("dial", [v.dial, v.positions, v.lengths], ([at, positions, lengths]) =>
        h(
          "div",
          { class: "t-dial" },
          h("div", { class: "t-label" }, h("span", {}, "Length")),
          h(
            "div",
            { class: "t-seg t-seg-wide", role: "radiogroup", "aria-label": "Length" },
            positions.map((p) =>
              h(
                "button",
                {
                  type: "button",
                  role: "radio",
                  "aria-checked": String(p.name === at),
                  class: p.name === at ? "t-on" : "",
                  onclick: () => trigger("dial", { position: p.name }),
                },
                h("strong", {}, p.title),
                h("span", {}, p.text),
              ),
            ),
          ),
          h("p", { class: "t-quiet t-lengths" }, lengths),
        ),
      );
      for (const [name, title, text] of [
        ["advanced", "Advanced", "rank, learning rate, sizes, saves"],
        ["expert", "Expert", "noise levels, losses, everything else"],
      ]) {
        const flat = v[name].flatMap((g) => g.fields);
        draw(name, shape(flat), () => drawer(name, title, text, v[name]));
        const count = part.node(name).querySelector(".t-count"),
          changed = flat.filter((f) => f.changed).length;
        if (count) count.textContent = changed ? `${changed} changed` : "";
        refresh(flat);
      }
      search();
      refresh([...v.basic, ...v.length, ...v.watch]);
      part.draw("changes", v.changes, (changes) => {
        const before = part.node("changes").querySelector("details");
        return (
          changes.length &&
          h(
            "details",
            { class: "t-drawer", open: before ? before.open : false, "data-drawer": "changes" },
            h(
              "summary",
              {},
              icon("chevron"),
              h("strong", {}, "What you changed"),
              h("span", { class: "t-count" }, String(changes.length)),
            ),
            h(
              "ul",
              { class: "t-changes" },
              changes.map((c) =>
                h(
                  "li",
                  { "data-change": c.key },
                  h("span", {}, c.label),
                  h("del", { translate: named(c.was) }, c.was),
                  h("ins", { translate: named(c.now) }, c.now),
                  h(
                    "button",
                    {
                      class: "t-link",
                      type: "button",
                      "aria-label": `Put back ${c.label}`,
                      onclick: () => trigger("reset", { key: c.key }),
                    },
                    "put back",
                  ),
                ),
              ),
            ),
          )
        );
      });
      part.draw("yaml", v.yaml, (text) => {
        const open = part.node("yaml").querySelector("details");
        return [
          h(
            "div",
            { class: "t-row t-keep" },
            action("Save as my recipe", () => trigger("keep", {})),
            action("Export", () => download(v.file, part.node("yaml").querySelector("pre").textContent)),
            action("Import", importer),
            part.node("saved", "span", { class: "t-quiet", role: "status" }),
          ),
          part.node("wrong", "div", { role: "alert" }),
          h(
            "details",
            { class: "t-drawer", open: open ? open.open : false, "data-drawer": "yaml" },
            h(
              "summary",
              {},
              icon("chevron"),
              h("strong", {}, "Show YAML"),
              h("span", { class: "t-quiet" }, "the same for python -m tuner run"),
            ),
            h("pre", { class: "t-yaml", tabindex: 0, "aria-label": "Recipe as YAML" }, h("span", { translate: "no" }, text)),
            action("Copy", (e) => {
              navigator.clipboard.writeText(text);
              e.target.textContent = "Copied";
            }),
          ),
        ];
      });
      const said = told(v.told);
      part.draw("saved", said.saved, (text) => text);
      part.draw(
        "wrong",
        said.wrong,
        (list) =>
          list &&
          h(
            "div",
            { class: "t-problem t-error" },
            h("div", {}, h("strong", {}, "Not imported."), h("ul", {}, list.map((w) => h("li", {}, w)))),
          ),
      );
      part.draw("facts", v.facts, (facts) => [
        h("h3", {}, "What will happen"),
        h(
          "dl",
          { class: "t-facts" },
          facts.map(([k, x]) => [h("dt", {}, k), h("dd", {}, x)]),
        ),
      ]);
      part.draw("problems", [v.problems, v.state], ([list, state]) => [
        h("h3", {}, "Problems", h("span", { class: "t-state t-" + state.kind, role: "status" }, state.text)),
        list.length ? h("ul", { class: "t-problems" }, list.map(problem)) : h("p", { class: "t-quiet" }, state.calm),
      ]);
      part.draw(
        "why",
        v.why,
        (why) =>
          why.length &&
          h(
            "details",
            { class: "t-why", open: true },
            h("summary", {}, "Why these values"),
            h(
              "ul",
              {},
              why.map((w) => h("li", {}, w)),
            ),
          ),
      );
    };
  });
