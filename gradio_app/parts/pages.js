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
    const look = () => {
      const set = (dark) => () => Tuner.dark(dark);
      return h(
        "div",
        { class: "t-row", role: "group", "aria-label": "Look" },
        h("button", { class: "t-button t-small", type: "button", onclick: set(false) }, "Light"),
        h("button", { class: "t-button t-small", type: "button", onclick: set(true) }, "Dark"),
      );
    };
    return (value) => {
      part.draw("said", value.said, (t) => t && h("p", { class: "t-said" }, t));
      part.draw("all", value, (v) => [
        panel("This machine", facts(v.machine)),
        panel("Workspace", facts(v.workspace)),
        panel("Cache", facts(v.cache), h("p", { class: "t-quiet t-gap" }, "Pictures and captions as the models see them; made again when a run needs them."), prune(v)),
        panel("Look", look()),
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
    root.append(h("div", { class: "t-lib-head" }, find), part.node("all", "div", { class: "t-help" }));
    const draw = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (e) => words.every((w) => [e.term, e.text, say(e.term), say(e.text)].join(" ").toLowerCase().includes(w));
      const left = value.sections.map((s) => ({ ...s, entries: s.entries.filter(fits) })).filter((s) => s.entries.length);
      part.draw("all", left, (sections) =>
        sections.length
          ? sections.map((s) =>
              h(
                "section",
                { class: "t-panel" },
                h("h2", {}, s.title),
                h("dl", { class: "t-terms" }, s.entries.map((e) => [h("dt", {}, e.term), h("dd", {}, e.text)])),
              ),
            )
          : h("p", { class: "t-quiet" }, "Nothing is said about that here. Try a shorter word."),
      );
    };
    find.addEventListener("input", draw);
    return (now) => {
      value = now;
      draw();
    };
  });
