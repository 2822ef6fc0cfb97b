// One run, live: phases, progress, loss, samples, buttons, log.
Tuner.train = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, s, icon, slots, file, wipe, modal, url } = Tuner;
    const part = slots();
    let shown = "",
      newest = 0;

    const nice = (low, high, count) => {
      const raw = (high - low) / count || 1,
        power = 10 ** Math.floor(Math.log10(raw)),
        unit = [1, 2, 5, 10].find((u) => raw <= u * power) * power;
      const ticks = [];
      for (let t = Math.ceil(low / unit) * unit; t <= high + unit * 1e-6; t += unit)
        ticks.push(Number(t.toPrecision(8)));
      return ticks;
    };
    const plot = (c) => {
      if (!c.raw.length && !c.held.length)
        return h(
          "p",
          { class: "t-quiet t-plot-none" },
          "The loss appears with the first steps. A falling line means that it learns; small ups and downs are normal.",
        );
      const W = 900,
        H = 168,
        L = 44,
        R = 10,
        T = 10,
        B = 24;
      const ys = [...c.line.map((p) => p[1]), ...c.held.map((p) => p[1])];
      const sorted = c.raw.map((p) => p[1]).sort((a, b) => a - b);
      if (sorted.length)
        ys.push(
          sorted[Math.floor(sorted.length * 0.02)],
          sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))],
        );
      let low = Math.min(...ys),
        high = Math.max(...ys);
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      low = Math.max(0, low - room);
      high += room;
      const far = c.raw.length ? c.raw[c.raw.length - 1][0] : 0,
        span = Math.max(1, Math.min(c.of, Math.max(far * 2, Math.round(c.of / 5), 10)));
      const X = (x) => L + (x / span) * (W - L - R),
        Y = (y) => T + (1 - (Math.min(Math.max(y, low), high) - low) / (high - low)) * (H - T - B);
      const path = (points) => points.map((p) => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(" ");
      const last = c.line[c.line.length - 1];
      return [
        h(
          "div",
          { class: "t-legend" },
          h("span", { class: "t-key-line" }, "loss"),
          c.held.length ? h("span", { class: "t-key-held" }, "validation loss") : "",
          c.marks.length ? h("span", { class: "t-key-mark" }, "saved") : "",
        ),
        s(
          "svg",
          {
            viewBox: `0 0 ${W} ${H}`,
            class: "t-plot",
            role: "img",
            "aria-label": `Loss over ${c.of} steps` + (last ? `, now ${last[1].toPrecision(3)}` : ""),
          },
          nice(low, high, 4).map((t) => [
            s("line", { x1: L, x2: W - R, y1: Y(t), y2: Y(t), class: "t-grid" }),
            s("text", { x: L - 8, y: Y(t) + 3.5, class: "t-tick t-end" }, String(t)),
          ]),
          nice(0, span, 6)
            .filter((t) => Number.isInteger(t))
            .map((t) => s("text", { x: X(t), y: H - 6, class: "t-tick t-mid" }, String(t))),
          c.marks.map((m) =>
            s(
              "path",
              { d: `M${X(m.step)} ${H - B}l-3.5 6h7z`, class: "t-mark" },
              s("title", {}, `saved at step ${m.step}`),
            ),
          ),
          c.raw.map((p) => s("circle", { cx: X(p[0]).toFixed(1), cy: Y(p[1]).toFixed(1), r: 1.5, class: "t-point" })),
          s("polyline", { points: path(c.line), class: "t-line" }),
          c.held.length
            ? [
                s("polyline", { points: path(c.held), class: "t-held" }),
                c.held.map((p) => s("circle", { cx: X(p[0]), cy: Y(p[1]), r: 2.6, class: "t-held-dot" })),
              ]
            : "",
        ),
      ];
    };

    const label = (step) => (step === 0 ? "before" : `step ${step}`);
    const open = (m, r, at) => {
      const row = m.rows[r],
        cells = row.cells.map((c, i) => c && { src: file(c.file), label: label(m.steps[i]) });
      const from = cells.find(Boolean),
        to = cells[at] === from ? cells.filter(Boolean).pop() : cells[at];
      const show = h("div", {}, wipe(from, to));
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
                onclick: () => show.replaceChildren(wipe(from, c)),
              },
              h("img", { src: c.src, alt: "" }),
              h("span", {}, c.label),
            ),
        ),
      );
      modal(row.prompt, [show, strip], true);
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
          { class: "t-matrix", "data-few": cols.length <= 3 ? 3 : cols.length <= 5 ? 5 : 9 },
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
                      ? h(
                          "button",
                          {
                            class: "t-cell",
                            type: "button",
                            "aria-label": `${row.prompt}, ${label(m.steps[i])}: compare`,
                            onclick: () => open(m, r, i),
                          },
                          h("img", { src: file(row.cells[i].file), alt: `${row.prompt}, ${label(m.steps[i])}` }),
                        )
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
                    },
                  },
                  r.text,
                ),
                h("span", { class: "t-quiet" }, r.why),
              ),
            ),
          )
        : "";
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
              {},
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
      const more = h("input", { class: "t-input", type: "number", min: 1, step: 1, value: form.steps, "aria-label": "Further steps" });
      const send = () => trigger("extend", { run: shown, steps: Math.round(Number(more.value)) });
      more.addEventListener("keydown", (e) => e.key === "Enter" && send());
      return h(
        "div",
        { class: "t-extend", title: `Train beyond step ${form.of}` },
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
        h("section", { class: "t-panel" }, part.node("plot")),
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
      part.draw("band", v.band, band);
      part.draw("remedies", [v.remedies, v.nonce], ([list]) => remedies(list));
      part.draw("queue", v.queue, queue);
      part.draw("extend", [v.extend, v.run], ([form]) => extend(form));
      part.draw("plot", v.curve, plot);
      part.draw("matrix", v.matrix, matrix);
      part.draw("runs", [v.runs, v.run], ([runs, run]) => {
        const select = h(
          "select",
          { class: "t-input", "aria-label": "Run" },
          runs.map((r) => h("option", { value: r, selected: r === run, translate: "no" }, r)),
        );
        select.addEventListener("change", () => trigger("open", { run: select.value }));
        return h("label", { class: "t-runs" }, h("span", { class: "t-sr" }, "Run"), select);
      });
      part.draw("buttons", [v.buttons, v.nonce], ([list]) => buttons(list));
      part.draw(
        "download",
        v.download,
        (path) =>
          path &&
          h(
            "a",
            { class: "t-button t-block", href: file(path), download: v.run + ".safetensors" },
            icon("down", 14),
            "Download adapter",
          ),
      );
      part.draw("said", v.said, (text) => text && h("p", { class: "t-said", role: "status" }, text));
      part.draw("facts", v.facts, (facts) =>
        h(
          "dl",
          { class: "t-facts" },
          facts.map(([k, x]) => [h("dt", {}, k), h("dd", { title: x }, x)]),
        ),
      );
      part.draw(
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
      const drawer = part.node("log").querySelector("details");
      part.draw("log", v.log, (lines) =>
        h(
          "details",
          { class: "t-drawer t-log", open: drawer ? drawer.open : false },
          h("summary", {}, icon("chevron"), h("strong", {}, "Log")),
          h("pre", { class: "t-yaml", tabindex: 0, translate: lines.length ? "no" : null }, lines.join("\n") || "Nothing yet."),
        ),
      );
    };
  });
