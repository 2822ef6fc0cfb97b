// Base and adapters side by side: choose contenders and prompts, then any two pictures under a wipe.
Tuner.compare = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, wipe } = Tuner;
    const part = slots();
    let value = {},
      pair = [],
      known = "";

    const chosen = () => (value.shelf || []).filter((c) => c.on);
    const form = () => ({
      contenders: (value.shelf || []).map((c) => ({ id: c.id, on: c.on, strength: c.strength })),
      prompts: prompts.value,
      seed: seed.value,
      steps: steps.value,
    });
    const tell = () => {
      const sent = form();
      props.value = { ...value, sent };
      trigger("form", sent);
    };
    const prompts = h("textarea", { class: "t-input", id: "c-prompts", rows: 4 });
    const seed = h("input", { class: "t-input", id: "c-seed", type: "number", min: 0, step: 1 });
    const steps = h("input", { class: "t-input", id: "c-steps", type: "number", min: 1, max: 200, step: 1 });
    [prompts, seed, steps].forEach((n) => n.addEventListener("change", tell));
    let wait = 0;
    prompts.addEventListener("input", () => {
      window.clearTimeout(wait);
      wait = window.setTimeout(tell, 400);
    });

    const chip = (c) => {
      const box = h("input", { type: "checkbox", id: "c-" + c.id, checked: c.on });
      const out = h("output", { class: "t-strength" }, c.strength.toFixed(2));
      const range = h("input", {
        type: "range",
        min: 0,
        max: 1.5,
        step: 0.05,
        value: c.strength,
        "aria-label": `Strength of ${c.label}`,
      });
      const line = h(
        "div",
        { class: "t-contender" + (c.on ? " t-on" : "") },
        h("label", { for: "c-" + c.id }, box, h("span", {}, h("strong", {}, c.label), h("small", {}, c.note))),
        c.adapter ? h("div", { class: "t-strength-row" }, range, out) : "",
      );
      box.addEventListener("change", () => {
        c.on = box.checked;
        line.classList.toggle("t-on", c.on);
        tell();
      });
      range.addEventListener("input", () => {
        c.strength = Number(range.value);
        out.textContent = c.strength.toFixed(2);
      });
      range.addEventListener("change", tell);
      return line;
    };

    const key = (r, c) => `${r}:${c}`;
    const pick = (m, r, c) => {
      const at = key(r, c),
        found = pair.indexOf(at);
      found >= 0 ? pair.splice(found, 1) : pair.push(at);
      if (pair.length > 2) pair.shift();
      mark(m);
    };
    const cell = (m, at) => {
      const [r, c] = at.split(":").map(Number),
        got = m.rows[r] && m.rows[r].cells[c];
      return got && { src: file(got.file), label: m.columns[c].label };
    };
    const mark = (m) => {
      root.querySelectorAll(".t-cell[data-at]").forEach((n) => {
        const on = pair.includes(n.dataset.at);
        n.classList.toggle("t-picked", on);
        n.setAttribute("aria-pressed", String(on));
      });
      const two = [...pair].sort((a, b) => Number(a.split(":")[1]) - Number(b.split(":")[1])).map((at) => cell(m, at));
      part.draw("wipe", [pair, two], () =>
        two.length === 2 && two.every(Boolean)
          ? [
              wipe(two[0], two[1]),
              h("p", { class: "t-quiet t-center" }, "Drag, or use the arrow keys. Choose any two pictures."),
            ]
          : h("p", { class: "t-quiet t-center" }, "Choose two pictures to lay one over the other."),
      );
    };
    const matrix = (m) =>
      h(
        "div",
        { class: "t-matrix-scroll" },
        h(
          "table",
          { class: "t-matrix t-big", "data-few": m.columns.length <= 3 ? 3 : m.columns.length <= 4 ? 5 : 9 },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", {}, h("span", { class: "t-sr" }, "Prompt")),
              m.columns.map((c) => h("th", { scope: "col", title: c.label }, c.label, h("small", {}, c.note))),
            ),
          ),
          h(
            "tbody",
            {},
            m.rows.map((row, r) =>
              h(
                "tr",
                {},
                h("th", { scope: "row", title: row.prompt }, h("span", {}, row.prompt)),
                row.cells.map((got, c) =>
                  h(
                    "td",
                    {},
                    got
                      ? h(
                          "button",
                          {
                            class: "t-cell",
                            type: "button",
                            "data-at": key(r, c),
                            "aria-pressed": "false",
                            "aria-label": `${row.prompt}, ${m.columns[c].label}`,
                            onclick: () => pick(m, r, c),
                          },
                          h("img", { src: file(got.file), alt: `${row.prompt}, ${m.columns[c].label}` }),
                        )
                      : h("span", { class: "t-cell t-hole" + (m.running ? " t-wait" : "") }),
                  ),
                ),
              ),
            ),
          ),
        ),
      );

    const closer = h("section", { class: "t-panel t-closer", hidden: true }, part.node("wipe"));
    root.append(
      h(
        "aside",
        { class: "t-shelf", "aria-label": "What to compare" },
        h("h3", {}, "Contenders"),
        part.node("shelf", "div", { class: "t-contenders" }),
        h(
          "div",
          { class: "t-field t-wide" },
          h("div", { class: "t-label" }, h("label", { for: "c-prompts" }, "Prompts")),
          prompts,
          h("small", {}, "One per line"),
        ),
        h(
          "div",
          { class: "t-fields t-two" },
          h("div", { class: "t-field" }, h("div", { class: "t-label" }, h("label", { for: "c-seed" }, "Seed")), seed),
          h(
            "div",
            { class: "t-field" },
            h("div", { class: "t-label" }, h("label", { for: "c-steps" }, "Sampling steps")),
            steps,
          ),
        ),
      ),
      h("section", { class: "t-panel t-board" }, part.node("state"), part.node("matrix")),
      closer,
    );
    return (fresh) => {
      value = fresh;
      part.draw("shelf", [fresh.shelf.map((c) => [c.id, c.label, c.note]), fresh.reset], () => {
        value = fresh;
        return fresh.shelf.length > 1
          ? fresh.shelf.map(chip)
          : [
              ...fresh.shelf.map(chip),
              h("p", { class: "t-quiet" }, "Your adapters appear here when a run has finished or was stopped."),
            ];
      });
      if (fresh.form && JSON.stringify(fresh.form) !== known) {
        known = JSON.stringify(fresh.form);
        for (const [node, text] of [
          [prompts, fresh.form.prompts],
          [seed, fresh.form.seed],
          [steps, fresh.form.steps],
        ])
          if (node !== document.activeElement) node.value = text;
      }
      const m = fresh.board;
      part.draw(
        "state",
        [fresh.sentence, fresh.state],
        ([text, state]) =>
          text &&
          h(
            "p",
            { class: state === "failed" ? "t-said t-bad" : "t-quiet", role: "status", "data-state": state },
            state === "running" ? h("span", { class: "t-spin" }) : "",
            text,
          ),
      );
      const drawn = part.draw("matrix", m, (board) =>
        board
          ? matrix(board)
          : h(
              "div",
              { class: "t-empty t-empty-small" },
              icon("image", 34),
              h("h2", {}, "See what changed"),
              h(
                "p",
                { class: "t-quiet" },
                "The same prompt, the same seed, with and without your adapter. Press Compare.",
              ),
            ),
      );
      if (m && (drawn || !pair.length)) {
        if (pair.length < 2)
          pair =
            m.rows.flatMap((row, r) => {
              const have = row.cells.map((c, i) => (c ? i : -1)).filter((i) => i >= 0);
              return have.length > 1 ? [[key(r, have[0]), key(r, have[have.length - 1])]] : [];
            })[0] || [];
        mark(m);
      }
      closer.hidden = !m;
      root.classList.toggle("t-wide-board", !m);
    };
  });
