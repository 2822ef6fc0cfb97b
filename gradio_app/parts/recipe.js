// Choose a recipe, fill its first screen, see what it will do. All settings come from the recipe's schema.
Tuner.recipe = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file } = Tuner;
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
      if (f.kind === "bool") {
        node = h("input", { type: "checkbox", id, checked: f.value });
        node.addEventListener("change", () => set(f.key, node.checked));
      } else if (f.kind === "choice") {
        node = h(
          "select",
          { class: "t-input", id },
          f.choices.map((c) => h("option", { value: c, selected: c === f.value }, c || "automatic")),
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
    const labelled = (f) => {
      const id = "f-" + f.key.replace(/\W/g, "-");
      const node = control(f);
      const reset = h(
        "button",
        {
          class: "t-link t-reset",
          type: "button",
          title: `The recipe says: ${f.own === "" ? "automatic" : f.own}`,
          onclick: () => trigger("reset", { key: f.key }),
        },
        "reset",
      );
      const wide = f.kind === "yaml" || f.kind === "lines";
      return h(
        "div",
        {
          class:
            "t-field" +
            (wide ? " t-wide" : "") +
            (f.kind === "bool" ? " t-check" : "") +
            (f.changed ? " t-changed" : ""),
          "data-field": f.key,
        },
        h("div", { class: "t-label" }, h("label", { for: id }, f.label), reset),
        node,
        f.kind !== "bool" && f.choices.length && f.kind !== "choice"
          ? h(
              "datalist",
              { id: id + "-list" },
              f.choices.map((c) => h("option", { value: c })),
            )
          : "",
        h("small", { id: id + "-d" }, f.description),
      );
    };
    // Values that Python changed go into inputs that nobody is typing in.
    const refresh = (fields) => {
      for (const f of fields) {
        const node = inputs.get(f.key);
        if (!node) continue;
        const box = node.closest(".t-field");
        if (box) box.classList.toggle("t-changed", f.changed);
        if (node === document.activeElement || pending.has(f.key)) continue;
        if (node.type === "checkbox") node.checked = f.value;
        else if (node.value !== String(f.value)) node.value = f.value;
      }
    };
    const shape = (fields) => fields.map((f) => [f.key, f.kind, f.choices, f.description, f.own]);

    const card = (c, chosen) =>
      h(
        "button",
        {
          class: "t-recipe" + (c.id === chosen ? " t-on" : ""),
          type: "button",
          "aria-pressed": String(c.id === chosen),
          "data-recipe": c.id,
          onclick: () => trigger("choose", { id: c.id }),
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
          h("strong", {}, c.name),
          h("span", { class: "t-recipe-desc" }, c.description),
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
          Object.keys(p.remedy || {}).length
            ? h(
                "button",
                { class: "t-button t-small", type: "button", onclick: () => trigger("remedy", { remedy: p.remedy }) },
                "Put right: " +
                  Object.entries(p.remedy)
                    .map(([k, v]) => `${k.split(".").pop()} ${v === null ? "automatic" : v}`)
                    .join(", "),
              )
            : "",
        ),
      );

    const find = h("input", {
      type: "search",
      class: "t-input",
      placeholder: "Find a recipe",
      "aria-label": "Find a recipe",
    });
    find.addEventListener("input", () =>
      root.querySelectorAll(".t-recipe").forEach((n) => {
        n.hidden = !n.textContent.toLowerCase().includes(find.value.trim().toLowerCase());
      }),
    );
    root.append(
      h("aside", { class: "t-shelf", "aria-label": "Recipes" }, part.node("find"), part.node("cards")),
      h(
        "section",
        { class: "t-form", "aria-label": "Settings" },
        part.node("head"),
        part.node("basic", "div", { class: "t-fields" }),
        part.node("dial"),
        part.node("length", "div", { class: "t-fields" }),
        part.node("watch", "div", { class: "t-fields" }),
        part.node("advanced"),
        part.node("expert"),
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
        groups.map((g) => h("div", {}, h("h4", {}, g.title), h("div", { class: "t-fields" }, g.fields.map(labelled)))),
      );
    };
    return (v) => {
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
      part.draw("head", [v.title, v.description], ([title, text]) => [
        h("h2", {}, title),
        h("p", { class: "t-quiet" }, text),
      ]);
      part.draw("basic", shape(v.basic), () => v.basic.map(labelled));
      part.draw("length", shape(v.length), () => v.length.map(labelled));
      part.draw("watch", shape(v.watch), () => v.watch.map(labelled));
      part.draw("dial", [v.dial, v.positions], ([at, positions]) =>
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
        ),
      );
      for (const [name, title, text] of [
        ["advanced", "Advanced", "rank, learning rate, sizes, saves"],
        ["expert", "Expert", "noise levels, losses, everything else"],
      ]) {
        const flat = v[name].flatMap((g) => g.fields);
        part.draw(name, shape(flat), () => drawer(name, title, text, v[name]));
        const count = part.node(name).querySelector(".t-count"),
          changed = flat.filter((f) => f.changed).length;
        if (count) count.textContent = changed ? `${changed} changed` : "";
        refresh(flat);
      }
      refresh([...v.basic, ...v.length, ...v.watch]);
      part.draw("yaml", [v.yaml, v.saved], ([text, saved]) => {
        const open = part.node("yaml").querySelector("details");
        return h(
          "details",
          { class: "t-drawer", open: open ? open.open : false, "data-drawer": "yaml" },
          h(
            "summary",
            {},
            icon("chevron"),
            h("strong", {}, "Show YAML"),
            h("span", { class: "t-quiet" }, "the same for python -m tuner run"),
          ),
          h("pre", { class: "t-yaml", tabindex: 0, "aria-label": "Recipe as YAML" }, text),
          h(
            "div",
            { class: "t-row" },
            h(
              "button",
              {
                class: "t-button t-small",
                type: "button",
                onclick: (e) => {
                  navigator.clipboard.writeText(text);
                  e.target.textContent = "Copied";
                },
              },
              "Copy",
            ),
            h(
              "button",
              { class: "t-button t-small", type: "button", onclick: () => trigger("keep", {}) },
              "Save as my recipe",
            ),
            saved && h("span", { class: "t-quiet" }, saved),
          ),
        );
      });
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
