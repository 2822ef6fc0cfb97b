// Everything in the workspace and the bin; the pages over it are in outgoing.js.
Tuner.holdings = (element, trigger, props, watch, upload) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, go, url } = Tuner;
    const part = slots();
    let value = {},
      shown = "";
    const button = (text, act, extra = {}) =>
      h("button", { class: "t-button t-small", type: "button", onclick: act, ...extra }, text);

    // -- what is looked for ----------------------------------------------------------------------------------------
    const find = h("input", { class: "t-input", type: "search", placeholder: "Search", "aria-label": "Search the library" });
    const order = h(
      "select",
      { class: "t-input", "aria-label": "Sort by" },
      [["at", "Newest first"], ["title", "Name"], ["bytes", "Largest first"]].map(([key, text]) => h("option", { value: key }, text)),
    );
    const picked = h("input", { class: "t-hidden", type: "file", multiple: true, accept: ".safetensors", id: "l-file",
      tabindex: -1, "aria-label": "Add an adapter file" });
    picked.addEventListener("change", async () => {
      const files = [],
        failed = [];
      for (const one of picked.files) {
        try {
          files.push({ path: (await upload(one)).path, name: one.name });
        } catch (error) {
          failed.push(one.name);
        }
      }
      picked.value = "";
      trigger("uploaded", { files, failed });
    });
    const add = h("button", { class: "t-button", type: "button", onclick: () => picked.click() }, icon("upload", 14),
      "Add an adapter");
    const list = h(
      "div",
      {},
      part.node("said", "div", { role: "status" }),
      h("div", { class: "t-lib-head" }, find, order, add, picked),
      h("div", { class: "t-lib-head" }, part.node("kinds", "div", { class: "t-lib-kinds", role: "group", "aria-label": "Show" }),
        part.node("total", "span", { class: "t-quiet" })),
      part.node("list", "ul", { class: "t-lib" }),
      part.node("bin", "details", { class: "t-lib-bin" }),
    );
    const page = part.node("page", "div", { class: "t-publish" });
    root.append(list, page);

    // -- one thing -------------------------------------------------------------------------------------------------
    const send = (item, what, more = {}) => trigger("act", { do: what, kind: item.kind, name: item.name, ...more });
    const field = (item, key, label, hint = "") =>
      h("input", {
        class: "t-input t-lib-" + key,
        "data-k": `${key} ${item[key]}`,
        value: item[key],
        placeholder: hint,
        "aria-label": `${label} of ${item.name}`,
        onchange: (e) => send(item, "write", { [key]: e.target.value }),
        onkeydown: (e) => e.key === "Enter" && e.target.blur(),
      });
    const open = (item, tab) => {
      trigger("openitem", { kind: item.kind, name: item.name, tab });
      go(tab);
    };
    const NAMES = { run: "Run", dataset: "Data set", adapter: "Adapter from elsewhere", export: "Exported files",
      compare: "Comparison", job: "Job" };
    const PICTURES = { run: "image", dataset: "image", adapter: "upload", export: "down", compare: "image", job: "check" };
    const ways = (item) =>
      ({
        dataset: () => [button("Open", () => open(item, "dataset"))],
        compare: () => [button("Open", () => open(item, "compare"))],
        run: () => [
          button("Open", () => open(item, "train")),
          item.adapter && button("Compare", () => open(item, "compare")),
          item.adapter && button("Export", () => trigger("export", { id: item.name })),
          item.adapter && button("Publish", () => trigger("prepare", { name: item.name })),
        ],
        adapter: () => [
          button("Compare", () => open(item, "compare")),
          button("Export", () => trigger("export", { id: `file:${item.name}` })),
        ],
        export: () => [button("Open", () => trigger("openexport", { name: item.name }))],
        job: () => [item.opens && button("Open", () => trigger("openupload", { name: item.name }))],
      })[item.kind]();
    const state = (item) =>
      item.state && h("span", { class: item.live ? "t-lib-live" : item.trouble ? "t-lib-failed" : "" }, item.state);
    const facts = (item) =>
      [NAMES[item.kind], item.family, item.licence && `base licence: ${item.licence}`, state(item), item.about, item.size, item.when]
        .filter(Boolean)
        .flatMap((fact, i) => (i ? [" · ", h("span", {}, fact)] : [h("span", {}, fact)]));
    const row = (item) =>
      h(
        "li",
        { "data-k": `${item.kind}:${item.name}` },
        item.thumb
          ? h("img", { src: file(item.thumb), alt: "", loading: "lazy", "data-k": item.thumb })
          : h("span", { class: "t-lib-blank", "aria-hidden": "true" }, icon(PICTURES[item.kind], 20)),
        h(
          "div",
          { class: "t-lib-text" },
          field(item, "title", "Name"),
          h("p", { class: "t-quiet" }, facts(item)),
          [item.trouble, ...(item.warnings || [])].filter(Boolean).map((text) => h("p", { class: "t-warned" }, text)),
          item.kind !== "job" &&
            h("div", { class: "t-lib-notes" }, field(item, "tags", "Tags", "Add tags"), field(item, "note", "Note", "Add a note")),
        ),
        h(
          "div",
          { class: "t-lib-do" },
          ways(item),
          h("button", { class: "t-ghost", type: "button", disabled: item.live, "aria-label": `Delete ${item.name}`,
            title: item.live ? "It is being worked on now; stop it first." : "Move to the bin",
            onclick: () => send(item, "delete") }, icon("bin")),
        ),
      );

    // -- the list --------------------------------------------------------------------------------------------------
    const KINDS = { "": "All", run: "Runs", adapter: "Adapters", export: "Exports", compare: "Comparisons",
      dataset: "Data sets", job: "Past jobs" };
    // Jobs are many and seldom looked for: they stand under their own name only.
    const of = (kind) =>
      (value.items || []).filter((i) => (kind ? i.kind === kind || (kind === "adapter" && i.adapter) : i.kind !== "job"));
    const fitting = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (i) =>
        words.every((w) => [i.name, i.title, i.tags, i.note, i.family, i.state, i.about].join(" ").toLowerCase().includes(w));
      const by = order.value;
      return of(shown)
        .filter(fits)
        .sort((a, b) => (by === "title" ? a.title.localeCompare(b.title) : b[by] - a[by]));
    };
    const none = () =>
      of(shown).length
        ? h("li", { class: "t-lib-none", "data-k": "none" }, "Nothing fits this search.")
        : h(
            "li",
            { class: "t-lib-none", "data-k": "empty" },
            h("p", {}, "Your runs, adapters and data sets gather here. Nothing has been made yet."),
            button("Try it with the demo pictures", () => go("dataset")),
          );
    const chips = (counts) =>
      Object.entries(KINDS).map(
        ([kind, text]) =>
          (!kind || counts[kind] > 0) &&
          h("button", { type: "button", "data-k": kind, class: kind === shown ? "t-on" : "", "aria-pressed": String(kind === shown),
            onclick: () => { shown = kind; redraw(); } }, text, " ", h("span", { class: "t-lib-count" }, String(counts[kind]))),
      ).filter(Boolean);
    const redraw = () => {
      const counts = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, of(kind).length]));
      if (!counts[shown]) shown = "";
      part.settle("kinds", [counts, shown], () => chips(counts));
      part.settle("list", [fitting(), shown], ([items]) => [
        shown === "job" && items.length > 0 &&
          h("li", { class: "t-lib-note-row", "data-k": "jobs" },
            h("p", { class: "t-quiet" }, "What captioning, masks and uploads wrote down. Nothing needs it any more once it has ended."),
            button("Move all to the bin", () => trigger("act", { do: "clear_jobs" }))),
        items.length ? items.map(row) : none(),
      ]);
    };
    [find, order].forEach((n) => n.addEventListener("input", redraw));

    // -- the bin ---------------------------------------------------------------------------------------------------
    // Asked once more, with what it costs, before anything is deleted.
    const emptying = (number, size) => {
      const box = h("div", { class: "t-gap" });
      const ask = () => box.replaceChildren(button("Empty the bin …", sure, { id: "l-empty" }));
      const sure = () => {
        const yes = button("Delete for good", () => trigger("act", { do: "empty" }), { id: "l-sure", class: "t-button t-small t-stop" });
        box.replaceChildren(
          h("p", { role: "alert" }, number === 1 ? `One thing is deleted for good and ${size} are freed. It cannot be brought back.`
            : `${number} things are deleted for good and ${size} are freed. They cannot be brought back.`),
          h("div", { class: "t-row" }, yes, button("Keep", () => (ask(), document.getElementById("l-empty").focus()))),
        );
        yes.focus();
      };
      ask();
      return box;
    };
    const bin = ([items, size]) => [
      h("summary", {}, `Bin (${items.length})`, items.length > 0 && h("span", { class: "t-quiet" }, ` · ${size}`)),
      items.length > 0 && h("ul", { class: "t-lib-thrown" },
        items.map((i) =>
          h("li", {}, h("span", { class: "t-quiet" }, NAMES[i.kind]), h("span", { translate: "no" }, i.name),
            h("span", { class: "t-quiet" }, i.size), button("Restore", () => send(i, "restore"), { "aria-label": `Restore ${i.name}` })))),
      items.length ? emptying(items.length, size) : h("p", { class: "t-quiet" }, "What you delete waits here until you empty the bin."),
    ];

    // -- the pages over it, each with an address of its own ------------------------------------------------------------
    const over = Tuner.outgoing(trigger);
    let asked = new URL(window.location.href).searchParams.get("open");
    return (now) => {
      value = now;
      list.hidden = Boolean(now.page);
      page.hidden = !now.page;
      part.draw("said", [now.said, now.undo], ([text, undo]) =>
        text && h("p", { class: "t-said" }, h("span", {}, text), undo && button("Undo", () => send(undo, "restore"))));
      part.draw("total", now.total, (text) => text && `${text} in all`);
      part.draw("bin", [now.bin, now.thrown], bin);
      redraw();
      if (part.draw("page", now.page, over) && now.page) root.scrollIntoView({ block: "nearest" });
      if (!now.page && !now.total) return; // nothing is known yet
      if (asked && !now.page) trigger("openlink", { page: asked });
      else url({ open: now.page ? now.page.link : "" }); // Gradio takes "page" for one of its own
      asked = "";
    };
  });
