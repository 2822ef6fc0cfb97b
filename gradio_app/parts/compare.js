// Base and adapters side by side: choose contenders and prompts, then any two pictures under a wipe.
Tuner.compare = (element, trigger, props, watch, upload) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, named, wipe, newest } = Tuner;
    const told = newest();
    const SAY = {
      picture: "Drag, or use the arrow keys.",
      video: "Both play together.",
      sound: "Both play together, equally loud; you hear one.",
    };
    const kind = (src) => (/\.(mp4|webm|mov)$/i.test(src) ? "video" : /\.(wav|mp3|flac|ogg)$/i.test(src) ? "sound" : "picture");
    const thumb = (src, alt) =>
      kind(src) === "picture"
        ? h("img", { src, alt, loading: "lazy", decoding: "async" })
        : kind(src) === "video"
          ? h("video", { src, muted: true, preload: "metadata", "aria-label": alt })
          : h("span", { class: "t-wave", role: "img", "aria-label": alt }, "\u266a");
    const side = (a, b) =>
      kind(a.src) === "picture" ? wipe(a, b) : kind(a.src) === "video" ? Tuner.together(a, b) : Tuner.switched(a, b);
    const part = slots();
    let value = {},
      pair = [],
      known = "",
      at = "",
      mine = "";

    const marked = new Map(); // what the chips on the screen say
    const form = () => ({
      contenders: [...marked.values()].map((c) => ({ id: c.id, on: c.on, strengths: c.strengths })),
      prompts: prompts.value,
      seed: seed.value,
      steps: steps.value,
      frames: frames.value,
      seconds: seconds.value,
    });
    const tell = () => {
      const sent = form();
      props.value = { ...value, sent };
      trigger("form", sent);
    };
    const prompts = h("textarea", { class: "t-input", id: "c-prompts", rows: 4 });
    const seed = h("input", { class: "t-input", id: "c-seed", inputmode: "numeric", title: "Several seeds: 1, 2, 3" });
    const steps = h("input", { class: "t-input", id: "c-steps", type: "number", min: 1, max: 200, step: 1 });
    const frames = h("input", { class: "t-input", id: "c-frames", type: "number", min: 1, step: 1 });
    const seconds = h("input", { class: "t-input", id: "c-seconds", type: "number", min: 1, step: 1 });
    const act = (what, more) => trigger("act", { do: what, ...more });
    [prompts, seed, steps, frames, seconds].forEach((n) => n.addEventListener("change", tell));
    let wait = 0;
    prompts.addEventListener("input", () => {
      window.clearTimeout(wait);
      wait = window.setTimeout(tell, 400);
    });

    // What the button "Export this one" means: a press marks it everywhere.
    const choice = (id, label) =>
      h(
        "button",
        {
          class: "t-choice",
          type: "button",
          "data-id": id,
          "aria-pressed": "false",
          "aria-label": `Choose ${label} for export`,
          title: "The button Export writes this one",
          onclick: () => {
            mine = id;
            choose();
            act("choose", { id });
          },
        },
        icon("check", 12),
        h("span", {}, "Choose"),
      );
    const choose = () =>
      root.querySelectorAll(".t-choice").forEach((n) => {
        const on = n.dataset.id === mine;
        n.setAttribute("aria-pressed", String(on));
        n.lastChild.textContent = on ? "Chosen" : "Choose";
        n.closest(".t-contender, th").classList.toggle("t-mine", on);
      });
    const chip = (c) => {
      marked.set(c.id, c);
      const box = h("input", { type: "checkbox", id: "c-" + c.id, checked: c.on });
      const levels = h("div", { class: "t-levels" });
      // One slider for each strength that is drawn; a contender may stand on the board at several.
      const level = (i) => {
        const out = h("output", { class: "t-strength" }, c.strengths[i].toFixed(2));
        const range = h("input", {
          type: "range",
          min: 0,
          max: 1.5,
          step: 0.05,
          value: c.strengths[i],
          "aria-label": i ? `Strength ${i + 1} of ${c.label}` : `Strength of ${c.label}`,
          oninput: (e) => {
            c.strengths[i] = Number(e.target.value);
            out.textContent = c.strengths[i].toFixed(2);
          },
          onchange: tell,
        });
        const change = (strengths, at) => {
          c.strengths = strengths;
          levels.replaceChildren(...c.strengths.map((_, n) => level(n)));
          levels.querySelectorAll("button")[at].focus();
          tell();
        };
        const [text, mark, act] = i
          ? [`Remove strength ${i + 1} of ${c.label}`, "close", () => change(c.strengths.filter((_, n) => n !== i), i - 1)]
          : [`Another strength of ${c.label}`, "plus", () => change([...c.strengths, Math.max(0, c.strengths[c.strengths.length - 1] - 0.25)], 0)];
        return h(
          "div",
          { class: "t-strength-row" },
          range,
          out,
          h("button", { class: "t-ghost", type: "button", "aria-label": text, title: text, onclick: act, disabled: !i && c.strengths.length > 3 }, icon(mark, 12)),
        );
      };
      levels.append(...c.strengths.map((_, n) => level(n)));
      const line = h(
        "div",
        { class: "t-contender" + (c.on ? " t-on" : "") + (c.step ? " t-step" : "") },
        h(
          "label",
          { for: "c-" + c.id },
          box,
          h("span", {}, h("strong", {}, h("span", { translate: named(c.label) }, c.label), c.suggested ? h("em", {}, "suggested") : ""), h("small", {}, c.note)),
        ),
        (c.warnings || []).map((text) => h("small", { class: "t-warned" }, text)),
        c.id === "base" ? "" : choice(c.id, c.label),
        c.adapter ? levels : "",
      );
      box.addEventListener("change", () => {
        c.on = box.checked;
        line.classList.toggle("t-on", c.on);
        tell();
      });
      return line;
    };

    // The validation loss of a run's checkpoints as bars; the suggested one is filled.
    const ribbon = (steps) => {
      const known = steps.filter((c) => c.loss !== null && c.loss !== undefined);
      if (known.length < 2) return "";
      const high = Math.max(...known.map((c) => c.loss)),
        low = Math.min(...known.map((c) => c.loss));
      const bar = (c) =>
        h("i", {
          class: c.suggested ? "t-best" : "",
          style: `height:${20 + (80 * (c.loss - low)) / (high - low || 1)}%`,
          title: `Step ${c.step}: ${c.loss.toFixed(3)}`,
        });
      return [
        h(
          "div",
          {
            class: "t-ribbon",
            role: "img",
            "aria-label": "Loss: " + known.map((c) => `step ${c.step} ${c.loss.toFixed(3)}`).join(", "),
          },
          known.map(bar),
        ),
      ];
    };
    const open = new Set();
    const checkpoints = (run, all, hint) => {
      const steps = all.filter((c) => c.step && c.run === run);
      if (!steps.length) return "";
      const box = h(
        "details",
        { class: "t-checkpoints", open: open.has(run) || steps.some((c) => c.on) },
        h("summary", {}, `Checkpoints (${steps.length})`),
        ribbon(steps),
        hint && h("p", { class: "t-quiet t-why" }, hint),
        steps.map(chip),
      );
      box.addEventListener("toggle", () => (box.open ? open.add(run) : open.delete(run)));
      return box;
    };
    const shelf = (all) =>
      all.filter((c) => !c.step).flatMap((c) => [chip(c), c.run ? checkpoints(c.run, all, c.hint) : ""]);

    const picker = (slot, accept, text) => {
      const input = h("input", { class: "t-hidden", type: "file", multiple: true, accept, id: `c-file-${slot}`,
        tabindex: -1, "aria-label": text });
      input.addEventListener("change", async () => {
        const files = [],
          failed = [];
        for (const one of input.files) {
          try {
            files.push({ path: (await upload(one)).path, name: one.name });
          } catch (error) {
            failed.push(one.name);
          }
        }
        input.value = "";
        trigger("uploaded", { slot, files, failed });
      });
      const press = h("button", { class: "t-button t-small", type: "button", onclick: () => input.click() },
        icon("upload", 13), text);
      return [press, input];
    };
    const slot = (one) =>
      h(
        "div",
        { class: "t-slot", role: "group", "aria-label": one.title },
        h("div", { class: "t-label" }, one.title),
        h(
          "div",
          { class: "t-slot-row" },
          one.pictures.map((p) =>
            h(
              "span",
              {},
              h("img", { src: file(p.file), alt: p.name, translate: "no" }),
              h(
                "button",
                {
                  class: "t-ghost",
                  type: "button",
                  "aria-label": `Remove ${p.name}`,
                  onclick: () => act("unpick", { slot: one.key, name: p.name }),
                },
                icon("close", 12),
              ),
            ),
          ),
          picker(one.key, "image/*", "Add pictures"),
        ),
        h("small", {}, "One for all prompts, or one for each, in their order"),
      );

    const key = (r, c) => `${r}:${c}`;
    const pick = (m, r, c) => {
      const at = key(r, c),
        found = pair.indexOf(at);
      found >= 0 ? pair.splice(found, 1) : pair.push(at);
      if (pair.length > 2) pair.shift();
      mark(m);
    };
    // Several columns may be one contender at several strengths.
    const first = (m, c) => m.columns.find((other) => other.id === c.id) === c;
    const called = (m, c) => (m.columns.filter((other) => other.label === c.label).length > 1 ? `${c.label}, ${c.note}` : c.label);
    const cell = (m, at) => {
      const [r, c] = at.split(":").map(Number),
        got = m.rows[r] && m.rows[r].cells[c];
      return got && { src: file(got.file), label: called(m, m.columns[c]) };
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
              side(two[0], two[1]),
              h("p", { class: "t-quiet t-center" }, SAY[kind(two[0].src)] + " Choose any two cells."),
            ]
          : h("p", { class: "t-quiet t-center" }, "Choose two cells to see them against each other."),
      );
    };
    const matrix = (m) =>
      h(
        "div",
        { class: "t-matrix-scroll" },
        h(
          "table",
          { class: "t-matrix", style: `--columns:${m.columns.length}` },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", {}, h("span", { class: "t-sr" }, "Prompt")),
              m.columns.map((c) =>
                h(
                  "th",
                  { scope: "col" },
                  h("span", { title: c.label, translate: named(c.label) }, c.label),
                  h("small", {}, c.note),
                  first(m, c) && value.shelf.some((s) => s.id === c.id) ? choice(c.id, c.label) : "",
                ),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            m.rows.map((row, r) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, h("span", { title: row.prompt, translate: "no" }, row.prompt), row.seed && h("small", {}, row.seed)),
                row.cells.map((got, c) =>
                  m.columns[c].refused
                    ? r === 0 && h("td", { class: "t-refused", rowspan: m.rows.length }, h("p", {}, m.columns[c].refused))
                    : h(
                    "td",
                    {},
                    got
                      ? h(
                          "button",
                          {
                            class: "t-cell",
                            type: "button",
                            "data-at": key(r, c),
                            "data-k": got.file,
                            "aria-pressed": "false",
                            "aria-label": [row.prompt, row.seed, called(m, m.columns[c])].filter(Boolean).join(", "),
                            onclick: () => pick(m, r, c),
                          },
                          thumb(file(got.file), `${row.prompt}, ${m.columns[c].label}`),
                        )
                      : h("span", { class: "t-cell t-hole" + (m.running ? " t-wait" : "") }),
                  ),
                ),
              ),
            ),
          ),
        ),
      );

    const vote = (b, choice) => act("vote", { number: b.number, side: choice });
    let current = null;
    root.addEventListener("keydown", (e) => {
      const choice = { ArrowLeft: "left", ArrowRight: "right" }[e.key];
      if (!choice || !current || current.result || /^(INPUT|TEXTAREA|SELECT|AUDIO|VIDEO)$/.test(e.target.tagName)) return;
      e.preventDefault();
      vote(current, choice);
    });
    // Clips start together and sounds are equally loud, else the choice would be about that.
    const unnamed = (b) => {
      const [left, right] = ["left", "right"].map((w) => ({ src: file(b[w]), label: w === "left" ? "Left" : "Right" }));
      const seen = {
        picture: () => h("div", { class: "t-two-up" }, [left, right].map((c) => h("img", { src: c.src, alt: c.label }))),
        video: () => Tuner.together(left, right),
        sound: () => Tuner.switched(left, right),
      }[kind(left.src)]();
      const press = (where, text) =>
        h("button", { class: "t-button t-block", type: "button", id: `c-${where}`, onclick: () => vote(b, where) }, text);
      return [seen, h("div", { class: "t-two-up" }, press("left", "\u2190 Left is better"), press("right", "Right is better \u2192"))];
    };
    const trial = (b) =>
      b.result
        ? h(
            "div",
            { class: "t-trial", tabindex: -1 },
            h("h3", {}, "Blind test"),
            h("p", { class: "t-verdict", role: "status" }, b.result),
            h("button", { class: "t-button", type: "button", onclick: () => act("endblind") }, "Done"),
          )
        : h(
            "div",
            { class: "t-trial", tabindex: -1 },
            h("h3", {}, `Blind test, ${b.number + 1} of ${b.of}`),
            h("p", { translate: "no" }, b.prompt),
            unnamed(b),
            h(
              "p",
              { class: "t-quiet" },
              "Which is better? Arrow keys choose. ",
              h("button", { class: "t-link", type: "button", onclick: () => act("endblind") }, "End the test"),
            ),
          );
    const offer = (m) => {
      const drawn = m.columns.map((_, i) => i).filter((i) => !m.columns[i].refused);
      const select = (id, text, at) => {
        const node = h("select", { class: "t-input", id, "aria-label": text },
          drawn.map((i) => h("option", { value: i }, `${m.columns[i].label}, ${m.columns[i].note}`)));
        node.value = at;
        return node;
      };
      const a = select("c-blind-a", "First contender", drawn[0]),
        b = select("c-blind-b", "Second contender", drawn[drawn.length - 1]);
      const start = () => act("blind", { a: Number(a.value), b: Number(b.value) });
      return h("details", { class: "t-offer" }, h("summary", {}, "Blind test"),
        h("p", { class: "t-quiet" }, "Ten pairs without labels; you choose, then you see how sure it is."), a, b,
        h("button", { class: "t-button t-block", type: "button", id: "c-blind", onclick: start }, "Start blind test"));
    };
    const history = ([kept, at]) => {
      if (kept.length < 2) return "";
      const node = h("select", { class: "t-input", id: "c-history", "aria-label": "Kept comparisons" },
        kept.map((k) => h("option", { value: k.id }, k.text)));
      node.value = at;
      node.addEventListener("change", () => act("open", { id: node.value }));
      return node;
    };
    const extra = (id, text, node) =>
      h("div", { class: "t-field", "data-for": id }, h("div", { class: "t-label" }, h("label", { for: id }, text)), node);
    const framesField = extra("c-frames", "Frames", frames),
      secondsField = extra("c-seconds", "Seconds", seconds);

    const closer = h("section", { class: "t-panel t-closer", hidden: true }, part.node("wipe"), part.node("offer"));
    root.append(
      h(
        "aside",
        { class: "t-shelf", "aria-label": "What to compare" },
        h("h3", {}, "Contenders"),
        part.node("shelf", "div", { class: "t-contenders" }),
        h("div", {}, picker("adapters", ".safetensors", "Add an adapter file")),
        part.node("said"),
        part.node("slots"),
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
          h("div", { class: "t-field" }, h("div", { class: "t-label" }, h("label", { for: "c-seed" }, "Seeds")), seed),
          h(
            "div",
            { class: "t-field" },
            h("div", { class: "t-label" }, h("label", { for: "c-steps" }, "Sampling steps")),
            steps,
          ),
          framesField,
          secondsField,
        ),
      ),
      h(
        "section",
        { class: "t-panel t-board" },
        part.node("history"),
        part.node("state"),
        part.node("trial"),
        part.node("matrix"),
      ),
      closer,
    );
    return (fresh) => {
      value = fresh;
      part.draw("shelf", [fresh.shelf.map((c) => [c.id, c.label, c.note, c.hint, c.warnings]), fresh.reset], () => {
        marked.clear();
        return fresh.shelf.length > 1
          ? shelf(fresh.shelf)
          : [
              ...shelf(fresh.shelf),
              h("p", { class: "t-quiet" }, "Your adapters appear here when a run has finished or was stopped."),
            ];
      });
      if (fresh.form && JSON.stringify(fresh.form) !== known) {
        known = JSON.stringify(fresh.form);
        for (const [node, text] of [
          [prompts, fresh.form.prompts],
          [seed, fresh.form.seed],
          [steps, fresh.form.steps],
          [frames, fresh.form.frames || ""],
          [seconds, fresh.form.seconds || ""],
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
            state === "running" &&
              h("button", { class: "t-button t-small t-stop", type: "button", onclick: () => act("stop") }, "Stop"),
          ),
      );
      framesField.hidden = fresh.modality !== "video";
      secondsField.hidden = fresh.modality !== "audio";
      part.draw("said", told(fresh.told).text, (text) => text && h("p", { class: "t-said t-bad", role: "alert" }, text));
      part.draw("slots", fresh.slots, (all) => all.map(slot));
      part.draw("history", [fresh.history, fresh.shown], history);
      current = fresh.blind;
      if (part.draw("trial", current, (b) => b && trial(b)) && current) root.querySelector(".t-trial").focus();
      part.node("matrix").hidden = Boolean(current);
      part.draw("offer", m && m.columns, (columns) => columns && columns.filter((c) => !c.refused).length > 1 && offer(m));
      const drawn = part.settle("matrix", [m, Boolean(fresh.chosen)], ([board]) =>
        board
          ? matrix(board)
          : h(
              "div",
              { class: "t-empty t-empty-small" },
              icon("image", 34),
              h("h2", {}, fresh.chosen ? "See what changed" : "Nothing to compare yet"),
              h(
                "p",
                { class: "t-quiet" },
                fresh.chosen
                  ? "The same prompt, the same seed, with and without your adapter. Press Compare."
                  : "Train an adapter or add a file of one. Then the same prompt and seed are drawn with and without it.",
              ),
              fresh.chosen ? "" : h("button", { class: "t-button", type: "button", onclick: () => Tuner.go("train") }, "Open Train"),
            ),
      );
      if (fresh.shown !== at) pair = [];
      at = fresh.shown;
      if (m && (drawn || !pair.length)) {
        if (pair.length < 2)
          pair =
            m.rows.flatMap((row, r) => {
              const have = row.cells.map((c, i) => (c ? i : -1)).filter((i) => i >= 0);
              return have.length > 1 ? [[key(r, have[0]), key(r, have[have.length - 1])]] : [];
            })[0] || [];
        mark(m);
      }
      mine = fresh.chosen;
      choose();
      closer.hidden = !m || Boolean(current);
      root.classList.toggle("t-wide-board", closer.hidden);
    };
  });

// How loud each player must be so that all sound equally loud: the root mean square of every one, and the quietest
// stays as it is. Fails where something has no sound.
Tuner.levels = async (sources) => {
  const power = async (src) => {
    const raw = await (await fetch(src)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 1, 44100).decodeAudioData(raw);
    let sum = 0;
    for (let c = 0; c < sound.numberOfChannels; c++) for (const x of sound.getChannelData(c)) sum += x * x;
    return Math.sqrt(sum / Math.max(1, sound.length * sound.numberOfChannels));
  };
  const loud = await Promise.all(sources.map(power));
  const low = Math.min(...loud);
  return loud.map((one) => (low > 0 ? low / one : 1));
};

// Which of two players is heard, as a pair of buttons; both go on, so that a switch keeps the place.
Tuner.heard = (players, labels) => {
  const { h } = Tuner;
  const note = h("small", { class: "t-quiet", role: "status" });
  let at = 0;
  const names = labels.map((label, i) => h("button", { type: "button", "aria-pressed": "false", onclick: () => hear(i) }, label));
  const hear = (i) => {
    if (Math.abs(players[i].currentTime - players[at].currentTime) > 0.02) players[i].currentTime = players[at].currentTime;
    at = i;
    players.forEach((p, n) => (p.muted = n !== at));
    names.forEach((n, k) => {
      n.classList.toggle("t-on", k === at);
      n.setAttribute("aria-pressed", String(k === at));
    });
  };
  hear(0);
  const set = h("div", { class: "t-seg t-seg-wide", role: "group", "aria-label": "Which one is heard" }, names);
  return { set, note, now: () => at };
};

// One button plays or pauses both; the one that is not the leader follows it.
Tuner.paired = (players, words, leader) => {
  const press = Tuner.h("button", { class: "t-button t-small", type: "button" }, words[0]);
  const say = () => (press.textContent = players[leader()].paused ? words[0] : words[1]);
  press.addEventListener("click", () => {
    const first = players[leader()],
      go = first.paused;
    players.forEach((p) => p !== first && (p.currentTime = first.currentTime));
    players.forEach((p) => (go ? p.play() : p.pause()));
    say();
  });
  players.forEach((p, i) => {
    p.addEventListener("ended", say);
    p.addEventListener("timeupdate", () => {
      if (i !== leader()) return;
      for (const other of players)
        if (other !== p && !other.seeking && Math.abs(p.currentTime - other.currentTime) > 0.05) other.currentTime = p.currentTime;
    });
  });
  return press;
};

// Two clips that play, pause and move together; where they have sound, one is heard.
Tuner.together = (a, b) => {
  const { h } = Tuner;
  const clips = [a, b].map((c) =>
    h("video", { src: c.src, muted: true, loop: true, playsinline: true, preload: "auto", "aria-label": c.label, translate: Tuner.named(c.label) }));
  clips.forEach((c) => (c.muted = true));
  const range = Tuner.place(clips, "Place in both clips");
  const press = Tuner.paired(clips, ["Play both", "Pause both"], () => 0);
  const figures = clips.map((c, i) => h("figure", {}, c, h("figcaption", { translate: Tuner.named([a, b][i].label) }, [a, b][i].label)));
  const box = h("div", { class: "t-wipe-box t-together" }, figures, range, press);
  Tuner.levels([a.src, b.src]).then(
    (volumes) => {
      const { set, note } = Tuner.heard(clips, [a, b].map((c) => `Hear ${c.label}`));
      clips.forEach((c, i) => (c.volume = volumes[i]));
      note.textContent = "Loudness is matched.";
      box.append(set, note);
    },
    () => {
      /* silent clips */
    },
  );
  return box;
};

// Where both players are, to be moved by hand: a share of the first one's length.
Tuner.place = (players, text) => {
  const range = Tuner.h("input", { type: "range", min: 0, max: 1, step: 0.001, value: 0, "aria-label": text });
  range.addEventListener("input", () => players.forEach((p) => p.duration && (p.currentTime = range.value * p.duration)));
  players[0].addEventListener("timeupdate", () => {
    if (players[0].duration) range.value = players[0].currentTime / players[0].duration;
  });
  return range;
};

// Two recordings at once of which one is heard; the louder one is turned down to the loudness of the other.
Tuner.switched = (a, b) => {
  const { h } = Tuner;
  const players = [a, b].map((c) => h("audio", { src: c.src, preload: "auto" }));
  const { set, note, now } = Tuner.heard(players, [a, b].map((c, i) => `${"AB"[i]}: ${c.label}`));
  Tuner.levels([a.src, b.src])
    .then((volumes) => {
      players.forEach((p, i) => (p.volume = volumes[i]));
      note.textContent = "Loudness is matched.";
    })
    .catch(() => (note.textContent = "Loudness could not be measured; it is not matched."));
  return h("div", { class: "t-wipe-box t-switched" }, players, Tuner.place(players, "Place in both recordings"), Tuner.paired(players, ["Play", "Pause"], now), set, note);
};
