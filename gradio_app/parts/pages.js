// System: what this machine and the workspace are. Help: terms, steps and keys, with a search.
Tuner.system = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, slots } = Tuner;
    const part = slots();
    root.append(part.node("said", "div", { role: "status" }), part.node("all", "div", { class: "t-pages" }));
    const panel = (title, ...content) => h("section", { class: "t-panel" }, h("h2", {}, title), content);
    const facts = (rows) => h("dl", { class: "t-facts" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
    // Asked once more, with what it costs, before anything is deleted.
    const prune = (value) => {
      if (value.busy) return h("p", { class: "t-quiet t-gap", role: "status" }, h("span", { class: "t-spin" }), "Clearing …");
      const box = h("div", { class: "t-gap" });
      const small = (text, act, more = {}) => h("button", { class: "t-button t-small", type: "button", onclick: act, ...more }, text);
      const ask = () =>
        box.replaceChildren(small("Clear the cache …", sure, { id: "s-clear", disabled: !value.clear }));
      const sure = () => {
        const yes = small(`Delete ${value.clear}`, () => trigger("prune", {}), { id: "s-sure", class: "t-button t-small t-stop" });
        box.replaceChildren(
          h("p", { role: "alert" }, "Your pictures, captions and runs stay. The next training encodes everything again, which takes a while."),
          h("div", { class: "t-row" }, yes, small("Keep", () => (ask(), document.getElementById("s-clear").focus()))),
        );
        yes.focus();
      };
      ask();
      return box;
    };
    // Several ways of which one holds; the same switches as in the header, in words.
    const choice = (label, pairs, is, set) => {
      const box = h("div", { class: "t-seg", role: "group", "aria-label": label });
      const show = () =>
        box.replaceChildren(
          ...pairs.map(([key, text, attributes]) =>
            h("button", { type: "button", class: is() === key ? "t-on" : "", "aria-pressed": String(is() === key), ...attributes,
              onclick: () => { set(key); show(); box.querySelector(".t-on").focus(); } }, text)),
        );
      show();
      return box;
    };
    const settings = () => [
      h("h3", {}, "Language"),
      choice("Language of the page", Tuner.words.all.map(([key, name]) => [key, name, key ? { translate: "no", lang: key } : {}]),
        Tuner.words.chosen, Tuner.words.choose),
      h("h3", { class: "t-gap" }, "Light or dark"),
      choice("Light or dark for the page", [["", "System default"], ["light", "Light"], ["dark", "Dark"]], Tuner.look, Tuner.setLook),
      h("p", { class: "t-quiet t-gap" }, "Both are remembered by this browser only."),
    ];
    const COLOURS = 7;
    const room = (kept) => {
      const all = kept.reduce((sum, [, bytes]) => sum + bytes, 0) || 1;
      return [
        h("div", { class: "t-room", "aria-hidden": "true" },
          kept.map(([, bytes], i) => bytes > 0 && h("span", { class: `t-room-${i % COLOURS}`, style: `flex-grow:${bytes / all}` }))),
        h("dl", { class: "t-facts t-room-facts" },
          kept.map(([name, , text], i) => [h("dt", {}, h("i", { class: `t-room-${i % COLOURS}`, "aria-hidden": "true" }), name), h("dd", {}, text)])),
      ];
    };
    return (value) => {
      part.draw("said", value.said, (t) => t && h("p", { class: "t-said" }, t));
      part.draw("all", value, (v) => [
        panel("This machine", facts(v.machine)),
        panel("Workspace", h("p", { class: "t-quiet t-path", translate: "no" }, v.folder), room(v.kept), h("hr"), facts(v.workspace)),
        panel("Cache", facts(v.cache), h("p", { class: "t-quiet t-gap" }, "Pictures and captions as the models see them; made again when a run needs them."), prune(v)),
        panel("Settings", settings()),
        panel("Versions", facts(v.versions)),
        panel("Licences", facts(v.licences)),
      ]);
    };
  });
Tuner.help = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, slots } = Tuner;
    const part = slots();
    const say = (text) => Tuner.words.say(text);
    let value = { sections: [] };
    const find = h("input", {
      class: "t-input",
      type: "search",
      id: "help-find",
      placeholder: "Search: rank, bucket, guidance …",
      "aria-label": "Search the help",
    });
    find.value = new URL(window.location.href).searchParams.get("find") || "";
    root.append(h("div", { class: "t-lib-head t-help-head" }, find), part.node("all", "div", { class: "t-help" }));
    const draw = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (e) => words.every((w) => [e.term, e.text, say(e.term), say(e.text)].join(" ").toLowerCase().includes(w));
      const left = value.sections.map((s) => ({ ...s, entries: s.entries.filter(fits) })).filter((s) => s.entries.length);
      part.draw("all", left, (sections) =>
        sections.length
          ? sections.map((s) =>
              h(
                "section",
                { class: s.title === "Terms" ? "t-panel t-help-wide" : "t-panel" },
                h("h2", {}, s.title),
                h("dl", { class: "t-terms" }, s.entries.map((e) => h("div", {}, h("dt", {}, e.term), h("dd", {}, e.text)))),
              ),
            )
          : h("p", { class: "t-quiet" }, "Nothing is said about that here. Try a shorter word."),
      );
    };
    find.addEventListener("input", () => {
      Tuner.url({ find: find.value });
      draw();
    });
    return (now) => {
      value = now;
      draw();
    };
  });
