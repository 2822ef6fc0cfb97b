// One run, live: phases, progress, loss, samples, buttons, log.
Tuner.train = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, wipe, modal, url, medium } = Tuner;
    const part = slots(),
      chart = Tuner.plot();
    let shown = "",
      newest = 0;

    const label = (step) => (step === 0 ? "before" : `step ${step}`);
    // Two of them against each other, as their kind allows.
    const side = (a, b) => ({ picture: wipe, video: Tuner.together, sound: Tuner.switched })[medium(a.src)](a, b);
    const open = (m, r, at) => {
      const row = m.rows[r],
        cells = row.cells.map((c, i) => c && { src: file(c.file), label: label(m.steps[i]) });
      const from = cells.find(Boolean),
        to = cells[at] === from ? cells.filter(Boolean).pop() : cells[at];
      const show = h("div", {}, from === to ? alone(from) : side(from, to));
      const strip = h(
        "div",
        { class: "t-strip" },
        cells.map(
          (c) =>
            c &&
            h(
              "button",
              {
                type: "button",
                "aria-label": `Compare with ${c.label}`,
                onclick: () => show.replaceChildren(from === c ? alone(c) : side(from, c)),
              },
              medium(c.src) === "picture" && h("img", { src: c.src, alt: "" }),
              h("span", {}, c.label),
            ),
        ),
      );
      modal(row.prompt, [show, strip], true);
    };
    // One sample as it is: what a cell of the matrix shows, and a comparison with itself.
    const alone = (c) =>
      ({
        picture: () => h("div", { class: "t-wipe-box" }, h("img", { src: c.src, alt: c.label, translate: "no" })),
        video: () => h("video", { src: c.src, controls: true, loop: true, playsinline: true, preload: "metadata", "aria-label": c.label, translate: "no" }),
        sound: () => h("audio", { src: c.src, controls: true, preload: "metadata", "aria-label": c.label, translate: "no" }),
      })[medium(c.src)]();
    const cell = (m, r, i) => {
      const row = m.rows[r],
        src = file(row.cells[i].file),
        name = `${row.prompt}, ${label(m.steps[i])}`,
        press = { type: "button", "aria-label": `${name}: compare`, onclick: () => open(m, r, i) };
      if (medium(src) === "picture") return h("button", { class: "t-cell", "data-k": src, translate: "no", ...press }, h("img", { src, alt: name, translate: "no" }));
      return h(
        "div",
        { class: "t-player", "data-k": src },
        alone({ src, label: name }),
        h("button", { class: "t-link", ...press }, "Compare"),
      );
    };
    const columns = (m) => {
      const most = 6,
        all = m.steps.map((_, i) => i);
      if (all.length <= most) return all;
      const picked = new Set([0, all.length - 1]);
      for (let i = 1; i < most - 1; i++) picked.add(Math.round((i * (all.length - 1)) / (most - 1)));
      return [...picked].sort((a, b) => a - b);
    };
    const matrix = (m) => {
      if (!m.rows.length)
        return h(
          "p",
          { class: "t-quiet" },
          "The first row of pictures is drawn before training, so that you can see what changes.",
        );
      const cols = columns(m);
      return h(
        "div",
        { class: "t-matrix-scroll" },
        h(
          "table",
          { class: "t-matrix", style: `--columns:${cols.length}` },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", {}, h("span", { class: "t-sr" }, "Prompt")),
              cols.map((i) => h("th", { scope: "col" }, label(m.steps[i]))),
            ),
          ),
          h(
            "tbody",
            {},
            m.rows.map((row, r) =>
              h(
                "tr",
                {},
                h("th", { scope: "row", title: row.prompt, translate: "no" }, h("span", {}, row.prompt)),
                cols.map((i) =>
                  h(
                    "td",
                    {},
                    row.cells[i]
                      ? cell(m, r, i)
                      : h("span", { class: "t-cell t-hole" }),
                  ),
                ),
              ),
            ),
          ),
        ),
      );
    };

    const clock = (at) => {
      const far = at * 1000 - Date.now() > 12 * 3600 * 1000;
      const form = { hour: "2-digit", minute: "2-digit", ...(far ? { weekday: "short" } : {}) };
      return new Date(at * 1000).toLocaleString(undefined, form);
    };
    const band = (b) => {
      const mood = { failed: "t-fail", crashed: "t-fail" }[b.state] || "";
      return h(
        "div",
        { class: `t-band ${mood}`, "data-state": b.state },
        h(
          "div",
          { class: "t-band-top" },
          h(
            "div",
            {},
            h("div", { role: "status" }, h("h2", { class: b.headline.length > 70 ? "t-long" : null }, b.headline)),
            b.sub && h("p", { class: "t-quiet" }, b.sub),
          ),
          h(
            "div",
            { class: "t-numbers" },
            b.numbers.map(([k, x, at]) => h("div", {}, h("span", {}, k), h("strong", {}, x || clock(at)))),
          ),
        ),
        b.memory.text && meter(b.memory),
        b.phases.length
          ? h(
              "ol",
              { class: "t-phases" },
              b.phases.map((p) =>
                h(
                  "li",
                  {
                    class: "t-" + p.state,
                    style: p.state === "now" ? `--done:${p.percent}%` : null,
                    "aria-current": p.state === "now" ? "step" : null,
                  },
                  h("span", { class: "t-phase-bar" }, h("i", {})),
                  h("span", {}, p.title),
                ),
              ),
            )
          : "",
      );
    };
    const meter = (m) =>
      h(
        "div",
        { class: "t-memory" },
        h("span", {}, m.title),
        h(
          "span",
          { class: "t-meter", role: "meter", "aria-label": m.title, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": m.used, "aria-valuetext": m.text },
          h("i", { style: `width:${m.used}%` }),
          m.peak ? h("b", { style: `left:${m.peak}%` }) : "",
        ),
        h("span", {}, m.text),
      );
    const LABELS = { save: "Save now", sample: "Sample now", resume: "Resume" };
    const buttons = (list) =>
      list.map((b) =>
        h(
          "button",
          {
            class: "t-button t-block" + (b.kind === "stop" ? " t-stop" : ""),
            type: "button",
            disabled: b.off,
            "data-do": b.do,
            "data-k": b.kind || b.do,
            title: b.title || "",
            onclick: (e) => {
              e.currentTarget.disabled = true;
              trigger("act", { do: b.do, run: shown });
            },
          },
          b.text || LABELS[b.do],
        ),
      );

    // After a failure: buttons that mend it, each with what it changes.
    const remedies = (list) =>
      list.length
        ? h(
            "ul",
            { class: "t-remedies", "aria-label": "What helps" },
            list.map((r, i) =>
              h(
                "li",
                {},
                h(
                  "button",
                  {
                    class: "t-button" + (i ? "" : " t-first"),
                    type: "button",
                    "data-remedy": r.key,
                    onclick: (e) => {
                      e.currentTarget.disabled = true;
                      trigger("act", { do: "remedy:" + r.key, run: shown });
                      if (r.go) Tuner.go(r.go);
                    },
                  },
                  r.text,
                ),
                h("span", { class: "t-quiet" }, r.why),
              ),
            ),
          )
        : "";
    const exported = (e) =>
      h(
        "li",
        {},
        e.file ? h("a", { class: "t-link", href: file(e.file), download: e.name }, e.format) : h("span", {}, e.format),
        e.loads_in.length > 0 && h("span", { class: "t-proof" }, icon("check", 12), `loads in ${e.loads_in.join(", ")}`),
        e.problems.length > 0 && h("p", { class: "t-wrong" }, `Does not load as it was trained: ${e.problems.join("; ")}`),
      );
    const queue = (list) => {
      if (!list.length) return "";
      const press = (run, act, label, mark, off) =>
        h(
          "button",
          {
            class: "t-ghost",
            type: "button",
            disabled: off,
            "aria-label": `${label}: ${run}`,
            title: label,
            onclick: () => trigger("queue", { run, do: act, shown }),
          },
          icon(mark, 14),
        );
      return h(
        "section",
        { class: "t-panel t-queue" },
        h("h3", {}, "Waiting"),
        h(
          "ol",
          {},
          list.map((e, i) =>
            h(
              "li",
              { "data-k": e.run },
              h(
                "button",
                { class: "t-link t-queue-name", translate: "no", type: "button", onclick: () => trigger("open", { run: e.run }) },
                e.run,
              ),
              h("span", { class: "t-quiet" }, e.what),
              h(
                "span",
                { class: "t-queue-tools" },
                press(e.run, "up", "Earlier", "up", i === 0),
                press(e.run, "down", "Later", "chevron", i === list.length - 1),
                press(e.run, "remove", "Take out of the queue", "close", false),
              ),
            ),
          ),
        ),
      );
    };
    const extend = (form) => {
      if (!form) return "";
      if (!form.how)
        return h("details", { class: "t-drawer t-extend" }, h("summary", {}, icon("chevron"), "Extend"), h("p", { class: "t-quiet" }, form.why));
      const send = (e) => {
        const more = e.currentTarget.closest(".t-extend").querySelector("input");
        trigger("extend", { run: shown, steps: Math.round(Number(more.value)) });
      };
      const more = h("input", {
        class: "t-input",
        type: "number",
        min: 1,
        step: 1,
        value: form.steps,
        "aria-label": "Further steps",
        onkeydown: (e) => e.key === "Enter" && send(e),
      });
      return h(
        "div",
        { class: "t-extend", "data-k": `${shown} ${form.of}`, title: `Train beyond step ${form.of}` },
        more,
        h("span", { class: "t-quiet" }, "more steps"),
        h("button", { class: "t-button", type: "button", title: form.why, onclick: send }, "Extend"),
        form.why && h("p", { class: "t-quiet" }, form.why),
      );
    };

    const empty = h(
      "div",
      { class: "t-empty" },
      h("span", { class: "t-logo t-logo-big", "aria-hidden": "true" }),
      h("h2", {}, "Nothing has been trained yet"),
      h(
        "p",
        { class: "t-quiet" },
        "Press Start training. The demo runs on this machine without a download and shows within minutes how a style is learned.",
      ),
    );
    const full = h(
      "div",
      { class: "t-train" },
      h("div", { class: "t-train-band" }, part.node("band"), part.node("remedies")),
      h(
        "div",
        { class: "t-train-main" },
        h("section", { class: "t-panel" }, chart.node),
        h("section", { class: "t-panel" }, h("h3", {}, "Samples"), part.node("matrix")),
      ),
      h(
        "aside",
        { class: "t-train-side" },
        part.node("runs"),
        part.node("buttons", "div", { class: "t-buttons" }),
        part.node("extend"),
        part.node("download"),
        part.node("said"),
        part.node("queue"),
        h("section", { class: "t-panel" }, part.node("facts")),
        part.node("warnings"),
        part.node("log"),
      ),
    );
    root.append(empty, full);
    return (v) => {
      if (v.nonce < newest) return; // made before the last press
      newest = v.nonce || newest;
      empty.hidden = Boolean(v.run);
      full.hidden = !v.run;
      if (!v.run) return;
      shown = v.run;
      url({ run: v.run });
      part.settle("band", v.band, band);
      part.settle("remedies", [v.remedies, v.nonce], ([list]) => remedies(list));
      part.settle("queue", v.queue, queue);
      part.settle("extend", [v.extend, v.run], ([form]) => extend(form));
      chart.show(v.curve);
      part.settle("matrix", v.matrix, matrix);
      part.settle("runs", [v.runs, v.run], ([runs, run]) => {
        const select = h(
          "select",
          {
            class: "t-input",
            "aria-label": "Run",
            "data-k": run,
            onchange: (e) => trigger("open", { run: e.currentTarget.value }),
          },
          runs.map((r) => h("option", { value: r, selected: r === run, translate: "no" }, r)),
        );
        return h("label", { class: "t-runs" }, h("span", { class: "t-sr" }, "Run"), select);
      });
      part.settle("buttons", [v.buttons, v.nonce], ([list]) => buttons(list));
      part.settle("download", [v.download, v.exports], ([path, exports]) => [
        path &&
          h("a", { class: "t-button t-block", href: file(path), download: v.run + ".safetensors" }, icon("down", 14), "Download adapter"),
        exports.length > 0 && h("ul", { class: "t-exports", "aria-label": "Exported files" }, exports.map(exported)),
      ]);
      part.settle("said", v.said, (text) => text && h("p", { class: "t-said", role: "status" }, text));
      part.settle("facts", v.facts, (facts) =>
        h(
          "dl",
          { class: "t-facts" },
          facts.map(([k, x]) => [h("dt", {}, k), h("dd", { title: x }, x)]),
        ),
      );
      part.settle(
        "warnings",
        [v.warnings, v.notes],
        ([list, notes]) =>
          (list.length || notes.length) &&
          h(
            "ul",
            { class: "t-problems" },
            [...list.map((w) => [w, "warning"]), ...notes.map((n) => [n, "note"])].map(([text, level]) =>
              h("li", { class: "t-problem t-" + level }, h("span", { class: "t-dot" }), h("div", {}, h("p", {}, text))),
            ),
          ),
      );
      part.settle("log", v.log, (lines) =>
        h(
          "details",
          { class: "t-drawer t-log" },
          h("summary", {}, icon("chevron"), h("strong", {}, "Log")),
          h("pre", { class: "t-yaml", tabindex: 0, translate: lines.length ? "no" : null }, lines.join("\n") || "Nothing yet."),
        ),
      );
    };
  });
