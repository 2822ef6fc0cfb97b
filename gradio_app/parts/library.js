// Everything in the workspace, the bin, and the page that publishes a run.
Tuner.holdings = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, go } = Tuner;
    const part = slots();
    let value = {};
    const button = (text, act, extra = {}) =>
      h("button", { class: "t-button t-small", type: "button", onclick: act, ...extra }, text);
    const find = h("input", { class: "t-input", type: "search", placeholder: "Search", "aria-label": "Search the library" });
    const choice = (label, pairs) =>
      h(
        "select",
        { class: "t-input", "aria-label": label },
        pairs.map(([key, text]) => h("option", { value: key }, text)),
      );
    const kind = choice("Show", [["", "Everything"], ["run", "Runs"], ["adapter", "Adapters"], ["dataset", "Data sets"]]);
    const order = choice("Sort by", [["at", "Newest first"], ["title", "Name"], ["bytes", "Largest first"]]);
    const head = h("div", { class: "t-lib-head" }, find, kind, order, part.node("total", "span", { class: "t-quiet" }));
    const list = h(
      "div",
      {},
      part.node("said", "div", { role: "status" }),
      head,
      part.node("list", "ul", { class: "t-lib" }),
      part.node("bin", "details", { class: "t-lib-bin" }),
    );
    const page = part.node("page", "div", { class: "t-publish" });
    root.append(list, page);

    const send = (item, what, more = {}) => trigger("act", { do: what, kind: item.kind, name: item.name, ...more });
    const field = (item, key, label) =>
      h("input", {
        class: "t-input t-lib-" + key,
        value: item[key],
        placeholder: label,
        "aria-label": `${label} of ${item.name}`,
        onchange: (e) => send(item, "write", { [key]: e.target.value }),
        onkeydown: (e) => e.key === "Enter" && e.target.blur(),
      });
    const open = (item, tab) => {
      trigger("openitem", { kind: item.kind, name: item.name, tab });
      go(tab);
    };
    const row = (item) =>
      h(
        "li",
        {},
        item.thumb && /\.(png|jpe?g|webp)$/i.test(item.thumb)
          ? h("img", { src: file(item.thumb), alt: "", loading: "lazy" })
          : h("span", { class: "t-lib-blank", "aria-hidden": "true" }, icon("image", 22)),
        h(
          "div",
          { class: "t-lib-text" },
          field(item, "title", "Name"),
          h(
            "p",
            { class: "t-quiet" },
            [item.kind === "run" ? "Run" : "Data set", item.family, item.state, item.about, item.size, item.when]
              .filter(Boolean)
              .join(" · "),
          ),
          h("div", { class: "t-lib-notes" }, field(item, "tags", "Tags"), field(item, "note", "Note")),
        ),
        h(
          "div",
          { class: "t-lib-do" },
          item.kind === "dataset"
            ? button("Open", () => open(item, "dataset"))
            : [button("Open", () => open(item, "train")), item.adapter && button("Compare", () => open(item, "compare"))],
          item.adapter && button("Publish", () => trigger("prepare", { name: item.name })),
          button("Delete", () => send(item, "delete"), {
            disabled: item.live,
            title: item.live ? "It is training now; stop it first." : "Move to the bin",
          }),
        ),
      );
    const shown = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (i) =>
        (!kind.value || i.kind === kind.value || (kind.value === "adapter" && i.adapter)) &&
        words.every((w) => [i.name, i.title, i.tags, i.note, i.family, i.state].join(" ").toLowerCase().includes(w));
      const by = order.value;
      return (value.items || [])
        .filter(fits)
        .sort((a, b) => (by === "title" ? a.title.localeCompare(b.title) : b[by] - a[by]));
    };
    const none = () =>
      (value.items || []).length
        ? h("li", { class: "t-lib-none" }, "Nothing fits this search.")
        : h(
            "li",
            { class: "t-lib-none" },
            h("p", {}, "Your runs and data sets gather here. Nothing has been made yet."),
            button("Try it with the demo pictures", () => go("dataset")),
          );
    const redraw = () => part.draw("list", shown(), (items) => (items.length ? items.map(row) : none()));
    [find, kind, order].forEach((n) => n.addEventListener("input", redraw));

    const bin = (items) => [
      h("summary", {}, `Bin (${items.length})`),
      items.map((i) =>
        h(
          "div",
          { class: "t-row" },
          h("span", { translate: "no" }, `${i.name} · ${i.size}`),
          button("Restore", () => send(i, "restore"), { "aria-label": `Restore ${i.name}` }),
        ),
      ),
      items.length
        ? h(
            "div",
            { class: "t-row" },
            button("Empty the bin", (e) => {
              const b = e.currentTarget;
              if (b.dataset.sure) return trigger("act", { do: "empty" });
              b.dataset.sure = "1";
              b.textContent = "Delete for good?";
            }),
          )
        : h("p", { class: "t-quiet" }, "What you delete waits here until you empty the bin."),
    ];

    const labelled = (text, node) => h("label", { class: "t-pub-field" }, h("span", {}, text), node);
    const form = (p) => {
      const repo = h("input", { class: "t-input", id: "p-repo", placeholder: `your-name/${p.wish}`, value: p.repo || "" });
      const open = h("input", { type: "checkbox", id: "p-public", checked: p.public });
      const again = h("input", { type: "checkbox", id: "p-update" });
      const token = h("input", { class: "t-input", id: "p-token", type: "password", autocomplete: "off" });
      const asked = () => ({ name: p.run, repo: repo.value, public: open.checked });
      const stale = () => {
        const b = document.getElementById("p-send");
        if (b) b.disabled = true;
      };
      repo.addEventListener("input", stale);
      open.addEventListener("change", stale);
      const ready = p.stage === "ready";
      return [
        labelled("Where on the Hugging Face Hub", repo),
        h("label", { class: "t-row" }, open, "Public: everyone can see it (else only you)"),
        button(ready ? "Look again" : "Show what would be sent", () => trigger("prepare", asked()), { id: "p-look" }),
        p.trouble && h("p", { class: "t-said t-bad", role: "alert" }, p.trouble),
        ready && [
          h("h3", {}, `${p.parcel.files.length} files, ${p.parcel.size}, ${p.parcel.private ? "private" : "public"}`),
          h(
            "ul",
            { class: "t-pub-files" },
            p.parcel.files.map((f) => h("li", { translate: "no" }, h("span", {}, f.name), h("span", {}, f.size))),
          ),
          h("p", { class: "t-quiet" }, "Your pictures and captions are never sent."),
          p.parcel.notes.map((n) => h("p", { class: "t-note" }, n)),
          h("details", {}, h("summary", {}, "The card"), h("pre", { class: "t-yaml t-pub-card", tabindex: 0, translate: "no" }, p.parcel.card)),
          labelled(p.login ? "You are logged in. Another token, only for this upload" : "Token with write access", token),
          h("p", { class: "t-quiet" }, "A token entered here is used for this upload and not kept."),
          h("label", { class: "t-row" }, again, "Send into a repository that exists already"),
          button(
            "Publish",
            () => {
              trigger("publish", { ...asked(), update: again.checked, token: token.value });
              token.value = "";
            },
            { id: "p-send", class: "t-button t-go" },
          ),
        ],
      ];
    };
    const state = (p) => {
      if (p.stage === "sending")
        return [
          h("p", { role: "status" }, p.of ? `Sending: ${p.done} of ${p.of} files` : "Preparing …"),
          h("progress", { max: p.of || 1, value: p.done, "aria-label": "Upload" }),
        ];
      if (p.stage === "done")
        return h(
          "p",
          { role: "status", class: "t-said" },
          `${p.repo} is published: `,
          h("a", { href: /^https?:/.test(p.url) ? p.url : null, target: "_blank", rel: "noopener noreferrer" }, p.url),
        );
      return [
        h("p", { class: "t-said t-bad", role: "alert" }, p.trouble),
        button("Try again", () => trigger("prepare", { name: p.run, repo: p.repo }), { id: "p-again" }),
      ];
    };
    const publish = (p) =>
      p && [
        button("Back to the library", () => trigger("closepage", {})),
        h("h2", {}, "Publish"),
        h("p", { class: "t-quiet", translate: "no" }, p.run),
        ["form", "ready"].includes(p.stage) ? form(p) : state(p),
      ];
    return (now) => {
      value = now;
      list.hidden = Boolean(now.page);
      page.hidden = !now.page;
      part.draw("said", now.said, (text) => text && h("p", { class: "t-said" }, text));
      part.draw("total", now.total, (text) => `${text} in all`);
      part.draw("bin", now.bin, bin);
      redraw();
      part.draw("page", now.page, publish);
    };
  });
