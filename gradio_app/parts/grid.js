// The data set as cards: pictures with captions edited in place, uploads by drop or button.
Tuner.grid = (element, trigger, props, watch, upload) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file } = Tuner;
    const part = slots();
    let value = {},
      only = "all",
      words = "",
      editing = "",
      busy = 0;
    const cards = new Map();

    const picker = h("input", {
      type: "file",
      multiple: true,
      accept: "image/*,.txt",
      class: "t-hidden",
      "aria-label": "Choose pictures",
      id: "pictures-input",
    });
    picker.addEventListener("change", () => {
      send([...picker.files]);
      picker.value = "";
    });

    const send = async (files) => {
      if (!files.length) return;
      busy += files.length;
      status(`Copying ${files.length} ${files.length === 1 ? "file" : "files"} …`);
      const done = [],
        failed = [];
      const next = async () => {
        const one = files.shift();
        if (!one) return;
        try {
          done.push({ path: (await upload(one)).path, name: one.name });
        } catch (error) {
          failed.push(one.name);
        }
        await next();
      };
      await Promise.all([next(), next(), next()]);
      busy = 0;
      status("");
      trigger("uploaded", { files: done, failed });
    };
    const status = (text) => {
      part.draw("busy", text, (t) => t && h("span", { class: "t-busy", role: "status" }, t));
    };

    const drop = h(
      "div",
      { class: "t-drop-veil" },
      h("span", {}, icon("upload", 20), "Drop pictures here; .txt files become their captions"),
    );
    let depth = 0;
    root.addEventListener("dragenter", (e) => {
      e.preventDefault();
      depth += 1;
      root.classList.add("t-dropping");
    });
    root.addEventListener("dragover", (e) => e.preventDefault());
    root.addEventListener("dragleave", () => {
      depth -= 1;
      if (depth <= 0) {
        depth = 0;
        root.classList.remove("t-dropping");
      }
    });
    root.addEventListener("drop", (e) => {
      e.preventDefault();
      depth = 0;
      root.classList.remove("t-dropping");
      send([...e.dataTransfer.files]);
    });

    const shown = () =>
      (value.items || []).filter(
        (i) =>
          (only === "all" || (only === "bare" && !i.caption) || (only === "warn" && i.warn)) &&
          (!words || (i.caption + " " + i.id).toLowerCase().includes(words)),
      );

    const edit = (id) => {
      const card = cards.get(id);
      if (!card) return;
      finish();
      editing = id;
      const item = value.items.find((i) => i.id === id);
      const area = h("textarea", {
        class: "t-caption-edit",
        rows: 3,
        "aria-label": `Caption of ${item.id}`,
        value: item.caption,
      });
      const close = (save) => {
        if (editing !== id) return;
        editing = "";
        const text = area.value.replace(/\s+/g, " ").trim();
        if (save && text !== item.caption) {
          item.caption = text;
          item.origin = "user";
          trigger("caption", { id, text });
        }
        fillCard(card, item, true);
      };
      area.addEventListener("keydown", (e) => {
        if (e.key === "Escape") {
          e.preventDefault();
          e.stopPropagation();
          close(false);
          card.node.querySelector(".t-caption").focus();
        }
        if (e.key === "Enter" && !e.shiftKey) {
          e.preventDefault();
          const list = shown(),
            at = list.findIndex((i) => i.id === id),
            following = list[at + 1];
          close(true);
          following ? edit(following.id) : card.node.querySelector(".t-caption").focus();
        }
      });
      area.addEventListener("blur", () => window.setTimeout(() => close(true), 0));
      card.finish = () => close(true);
      card.body.replaceChildren(area);
      area.focus();
      area.setSelectionRange(area.value.length, area.value.length);
      card.node.scrollIntoView({ block: "nearest" });
    };
    const finish = () => {
      const card = cards.get(editing);
      if (card && card.finish) card.finish();
    };

    const fillCard = (card, item, force) => {
      const text = JSON.stringify(item);
      if (!force && card.seen === text) return;
      card.seen = text;
      card.art.classList.toggle("t-clear", item.thumb.endsWith("-clear.png"));
      card.art.replaceChildren(
        item.thumb
          ? h("img", { src: file(item.thumb), alt: item.caption || item.id, loading: "lazy" })
          : h("span", { class: "t-noart" }, icon("image", 28)),
        item.warn
          ? h("span", { class: "t-badge t-bad", title: item.warn }, icon("warn", 12), item.badge || "Look")
          : "",
      );
      card.art.append(
        h(
          "button",
          {
            class: "t-remove",
            type: "button",
            "aria-label": `Remove ${item.id}`,
            title: "Remove from this data set",
            onclick: () => trigger("remove", { id: item.id }),
          },
          icon("close", 14),
        ),
      );
      if (editing === item.id) return;
      card.body.replaceChildren(
        h(
          "button",
          {
            class: "t-caption" + (item.caption ? "" : " t-bare"),
            type: "button",
            title: `${item.id} · ${item.size}`,
            onclick: () => edit(item.id),
          },
          h("span", {}, item.caption || "Write a caption"),
        ),
      );
    };
    const cardFor = (item) => {
      let card = cards.get(item.id);
      if (!card) {
        const art = h("div", { class: "t-art" }),
          body = h("div", { class: "t-body" });
        card = { art, body, node: h("figure", { class: "t-card", "data-id": item.id }, art, body), seen: "" };
        cards.set(item.id, card);
      }
      fillCard(card, item, false);
      return card.node;
    };

    const grid = h("div", { class: "t-cards" });
    const place = () => {
      const wanted = shown().map(cardFor);
      const known = new Set((value.items || []).map((i) => i.id));
      for (const id of [...cards.keys()]) if (!known.has(id)) cards.delete(id);
      if (grid.children.length !== wanted.length || wanted.some((n, i) => grid.children[i] !== n))
        grid.replaceChildren(...wanted);
      part.draw("none", [wanted.length, (value.items || []).length], ([now, all]) =>
        all === 0 ? empty() : now === 0 && h("p", { class: "t-quiet t-center" }, "No picture matches."),
      );
    };
    const empty = () => [
      zone(),
      (value.sets || []).some((o) => o.name === "demo") &&
        h(
          "p",
          { class: "t-quiet t-center t-or" },
          "No pictures at hand? ",
          h(
            "button",
            { class: "t-link", type: "button", onclick: () => trigger("pick", { name: "demo" }) },
            "Try it with the 24 demo pictures",
          ),
        ),
    ];
    const zone = () =>
      h(
        "button",
        { class: "t-dropzone", type: "button", onclick: () => picker.click() },
        h("span", { class: "t-dropzone-icon" }, icon("upload", 26)),
        h("strong", {}, "Drop your pictures here"),
        h(
          "span",
          {},
          "Ten to forty of one person, style or object are plenty. They are copied; your own files stay as they are.",
        ),
      );

    const bar = h(
      "div",
      { class: "t-bar" },
      part.node("sets", "div", { class: "t-bar-group" }),
      part.node("tools", "div", { class: "t-bar-group t-grow" }),
      part.node("add", "div", { class: "t-bar-group" }),
    );
    root.append(
      bar,
      part.node("note"),
      part.node("busy", "div", { class: "t-busy-line" }),
      part.node("none"),
      grid,
      drop,
      picker,
    );

    const fresh_set = () => {
      const name = h("input", { class: "t-input", type: "text", id: "new-set", maxlength: 60, value: "my-pictures" });
      const make = (e) => {
        e.preventDefault();
        close();
        trigger("fresh", { name: name.value });
      };
      const close = Tuner.modal(
        "A new data set",
        h(
          "form",
          { class: "t-field", onsubmit: make },
          h("label", { for: "new-set" }, "Name"),
          name,
          h("div", { class: "t-row t-right" }, h("button", { class: "t-button", type: "submit" }, "Make it")),
        ),
      );
      name.focus();
      name.select();
    };
    const trigger_field = (text) => {
      const input = h("input", {
        type: "text",
        class: "t-input t-trigger",
        value: text,
        placeholder: "none",
        "aria-label": "Trigger word",
        maxlength: 60,
      });
      input.addEventListener("change", () => trigger("triggerword", { text: input.value }));
      return h(
        "label",
        {
          class: "t-inline",
          title: "A rare word put before every caption; write it in a prompt to call what was learned",
        },
        h("span", {}, "Trigger word"),
        input,
      );
    };
    return (fresh) => {
      value = fresh;
      part.draw("sets", value.sets, (sets) => {
        const select = h(
          "select",
          { class: "t-input", "aria-label": "Data set" },
          sets.map((o) => h("option", { value: o.name, selected: o.chosen }, `${o.title} (${o.count})`)),
        );
        select.addEventListener("change", () => trigger("pick", { name: select.value }));
        return [
          select,
          h("button", { class: "t-button", type: "button", onclick: fresh_set }, icon("plus", 14), "New"),
        ];
      });
      part.draw("tools", [value.trigger, value.counts, value.name], ([word, counts]) => {
        const find = h("input", {
          type: "search",
          class: "t-input t-find",
          placeholder: "Find",
          "aria-label": "Find in captions",
          value: words,
        });
        find.addEventListener("input", () => {
          words = find.value.trim().toLowerCase();
          place();
        });
        if (only !== "all" && !counts[only]) only = "all";
        const seg = ["all", "bare", "warn"]
          .filter((k) => k === "all" || counts[k])
          .map((k) =>
            h(
              "button",
              {
                type: "button",
                class: only === k ? "t-on" : "",
                "aria-pressed": String(only === k),
                onclick: (e) => {
                  only = k;
                  e.target.parentNode.querySelectorAll("button").forEach((b) => {
                    b.classList.toggle("t-on", b === e.target);
                    b.setAttribute("aria-pressed", String(b === e.target));
                  });
                  place();
                },
              },
              { all: "All", bare: "No caption", warn: "Look at" }[k],
              " ",
              String(counts[k]),
            ),
          );
        return [
          trigger_field(word),
          find,
          seg.length > 1 && h("div", { class: "t-seg", role: "group", "aria-label": "Show" }, seg),
        ];
      });
      part.draw("add", 1, () =>
        h(
          "button",
          { class: "t-button", type: "button", onclick: () => picker.click() },
          icon("upload", 14),
          "Add pictures",
        ),
      );
      part.draw(
        "note",
        [value.note, value.undo],
        ([note, undo]) =>
          (note || undo) &&
          h(
            "p",
            { class: "t-note", role: "status" },
            h("span", {}, note),
            undo &&
              h(
                "button",
                { class: "t-link", type: "button", onclick: () => trigger("undo", { id: undo }) },
                icon("undo", 13),
                "Undo",
              ),
          ),
      );
      place();
    };
  });
