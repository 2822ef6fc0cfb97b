// The data set as cards: pictures with captions edited in place, uploads by drop or button.
Tuner.grid = (element, trigger, props, watch, upload) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, file, newest } = Tuner;
    const told = newest();
    const ORIGIN = { you: "Written by you", auto: "Written automatically", imported: "Came with the files" };
    const MASKED = {
      you: "Painted, or brought along",
      auto: "Made automatically: people count",
      whole: "All of the picture counts",
    };
    const PAIRS = { control: "Control picture", reference: "Reference picture" };
    const PURPOSES = { general: "Anything: describe it all", person: "A person", style: "A style", object: "An object", motion: "A motion", sound: "A voice or music" };
    const part = slots();
    let found = new Set();
    const use = (item) => item.use || {};
    let value = {},
      only = "all",
      words = "",
      editing = "",
      chosen = "",
      busy = 0;
    const cards = new Map();

    const picker = h("input", {
      type: "file",
      multiple: true,
      accept: "image/*,video/*,audio/*,.mkv,.avi,.opus,.flac,.txt,.zip",
      class: "t-hidden",
      "aria-label": "Choose pictures",
      id: "pictures-input",
    });
    let bringing = ""; // what the chosen files are: items, or mask, control, reference
    picker.addEventListener("change", () => {
      send([...picker.files], bringing);
      picker.value = bringing = "";
    });
    const bring = (what) => {
      bringing = what;
      picker.click();
    };

    const send = async (files, what = "") => {
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
      trigger("uploaded", { files: done, failed, what });
    };
    const status = (text) => {
      part.draw("busy", text, (t) => t && h("span", { class: "t-busy", role: "status" }, t));
    };

    const drop = h(
      "div",
      { class: "t-drop-veil" },
      h("span", {}, icon("upload", 20), "Drop pictures, videos, sounds or a zip here; .txt files become their captions"),
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
          (only === "all" || (only === "bare" && !i.caption) ||
            (only === "warn" && i.warn) ||
            (only === "unused" && use(i).unused) ||
            (only === "lone" && i.lacks.length) ||
            (only === "found" && found.has(i.id))) &&
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
        rows: Math.min(12, Math.max(3, Math.ceil(item.caption.length / 24))),
        "aria-label": `Caption of ${item.id}`,
        dir: "auto",
        value: item.caption,
      });
      const close = (save) => {
        if (editing !== id) return;
        editing = "";
        const text = area.value.replace(/\s+/g, " ").trim();
        if (save && text !== item.caption) {
          item.caption = text;
          item.origin = text ? "you" : "";
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
      const text = JSON.stringify({ ...item, use: null });
      if (!force && card.seen === text) return;
      card.seen = text;
      card.art.classList.toggle("t-clear", item.thumb.endsWith("-clear.png"));
      card.art.replaceChildren(
        item.thumb
          ? h("img", { src: file(item.thumb), alt: item.caption || item.id, translate: "no", loading: "lazy" })
          : h("span", { class: "t-noart" }, icon(item.kind === "audio" ? "sound" : "image", 28)),
        item.kind !== "image" ? h("span", { class: "t-kind" }, icon(item.kind === "audio" ? "sound" : "play", 12), item.size) : "",
        h("button", {
          class: "t-look",
          type: "button",
          "aria-label": `Show ${item.id}`,
          title: `${item.id} · ${item.size}`,
          onclick: (e) => press(item.id, e),
          onkeydown: (e) => steer(item.id, e),
        }),
        item.warn || item.lacks.length
          ? h(
              "span",
              { class: "t-badge t-bad", title: item.warn || `It has no ${item.lacks.join(" and no ")}.` },
              icon("warn", 12),
              item.warn ? item.badge || "Look" : "no pair",
            )
          : "",
        h(
          "span",
          { class: "t-marks" },
          item.repeats > 0 && h("span", { class: "t-mark", title: `Seen ${item.repeats} times in an epoch` }, `× ${item.repeats}`),
          item.mask && h("span", { class: "t-mark t-masked", title: MASKED[item.mask.by] }, icon("mask", 12), "mask"),
        ),
        item.wait ? h("span", { class: "t-coming", title: item.wait === "mask" ? "Its mask is being made" : "Its caption is being written" }, h("i", {})) : "",
        h(
          "button",
          {
            class: "t-pick",
            type: "button",
            tabindex: "-1",
            "aria-label": `Select ${item.id}`,
            title: "Select (Ctrl and a click; Shift takes all between)",
            onclick: (e) => (e.shiftKey ? span(item.id) : toggle(item.id)),
          },
          icon("check", 13),
        ),
      );
      card.art.append(
        h(
          "button",
          {
            class: "t-remove",
            type: "button",
            "aria-label": `Leave out ${item.id}`,
            title: "Leave out of this data set",
            onclick: () => trigger("remove", { ids: [item.id] }),
          },
          icon("close", 14),
        ),
      );
      if (editing === item.id) return;
      fillCaption(card, item);
      reach(card, item.id === current);
    };
    const fillCaption = (card, item) => {
      card.body.replaceChildren(
        h(
          "button",
          {
            class: "t-caption" + (item.caption ? "" : " t-bare"),
            type: "button",
            title: `${item.id} · ${item.size}`,
            onclick: () => edit(item.id),
          },
          h("span", item.caption ? { translate: "no", dir: "auto" } : {}, item.caption || "Write a caption"),
          item.origin && h("i", { class: "t-origin", "data-origin": item.origin, title: ORIGIN[item.origin] }),
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

    // One card is in the order of the Tab key; arrows take the next, as in any grid. So 500 cards are one stop.
    let current = "";
    const reach = (card, here) => {
      for (const one of card.node.querySelectorAll(".t-look, .t-remove, .t-caption")) one.tabIndex = here ? 0 : -1;
    };
    const rove = (id) => {
      if (id === current) return;
      const before = cards.get(current);
      current = id;
      if (before) reach(before, false);
      if (cards.has(id)) reach(cards.get(id), true);
    };
    const grid = h("div", { class: "t-cards" });
    grid.addEventListener("focusin", (e) => {
      const card = e.target.closest(".t-card");
      if (card) rove(card.dataset.id);
    });
    const place = () => {
      const held = grid.contains(document.activeElement);
      const at = [...grid.children].findIndex((n) => n.dataset.id === current);
      arrange();
      const ids = [...grid.children].map((n) => n.dataset.id);
      if (ids.length && !ids.includes(current)) rove(ids[Math.min(ids.length - 1, Math.max(0, at))]);
      if (held && ids.length && !grid.contains(document.activeElement))
        cards.get(current).art.querySelector(".t-look").focus({ preventScroll: true });
    };
    const arrange = () => {
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
        { class: "t-dropzone", type: "button", onclick: () => bring("") },
        h("span", { class: "t-dropzone-icon" }, icon("upload", 26)),
        h("strong", {}, "Drop your pictures, videos or sounds here"),
        h(
          "span",
          {},
          "Ten to forty of one person, style or object are plenty; a zip will do. They are copied: your own files stay as they are.",
        ),
      );

    // Several at once: Ctrl and a click or space take one more, Shift and a click or an arrow all between, Ctrl+A all.
    const picked = new Set();
    let anchor = "";
    const mark = () => {
      root.classList.toggle("t-some", picked.size > 0);
      for (const [id, card] of cards) {
        card.node.classList.toggle("t-picked", picked.has(id));
        const look = card.art.querySelector(".t-look");
        if (look) look.setAttribute("aria-label", `Show ${id}${picked.has(id) ? ", selected" : ""}`);
      }
      part.draw("picked", [[...picked], (value.job || {}).state, (value.maskjob || {}).state], picks);
    };
    const span = (id) => {
      const ids = shown().map((i) => i.id);
      const [from, to] = [Math.max(0, ids.indexOf(anchor)), ids.indexOf(id)].sort((a, b) => a - b);
      picked.clear();
      for (const one of ids.slice(from, to + 1)) picked.add(one);
      mark();
    };
    const toggle = (id) => {
      picked.has(id) ? picked.delete(id) : picked.add(id);
      anchor = id;
      mark();
    };
    const none = () => {
      picked.clear();
      mark();
    };
    const press = (id, e) => {
      if (e.shiftKey) return span(id);
      if (e.ctrlKey || e.metaKey) return toggle(id);
      anchor = id;
      choose(id);
    };
    const steer = (id, e) => {
      const ids = shown().map((i) => i.id);
      const wide = window.getComputedStyle(grid).gridTemplateColumns.split(" ").length;
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide, Home: -ids.length, End: ids.length }[e.key];
      const held = e.ctrlKey || e.metaKey;
      if (by) {
        const next = ids[Math.min(ids.length - 1, Math.max(0, ids.indexOf(id) + by))];
        if (e.shiftKey && !picked.size) anchor = id;
        cards.get(next).art.querySelector(".t-look").focus();
        if (e.shiftKey) span(next);
      } else if (held && e.key === " ") toggle(id);
      else if (held && e.key.toLowerCase() === "a") {
        for (const one of ids) picked.add(one);
        mark();
      } else if (e.key === "Escape" && picked.size) none();
      else if (e.key === "Delete") trigger("remove", { ids: picked.has(id) ? [...picked] : [id] });
      else if (e.key === "F2" || (e.key === "e" && !held)) edit(id);
      else return;
      e.preventDefault();
    };
    const picks = ([ids, captioning, masking]) => {
      if (!ids.length) return null;
      const busy = (state) => ({ disabled: state === "running" });
      const leave = () => {
        none();
        trigger("remove", { ids });
      };
      return h(
        "div",
        { class: "t-note t-picks", role: "group", "aria-label": "Selected pictures" },
        h("strong", { role: "status" }, `${ids.length} selected`),
        small("Leave out", leave),
        small("Repeats", () => repeats(ids)),
        small("Change captions", () => bulk(ids)),
        small("Write captions", () => auto(ids), busy(captioning)),
        small("Find people", () => trigger("automask", { ids, again: true }), busy(masking)),
        small("Delete masks", () => trigger("maskdrop", { ids })),
        small("Clear", none),
      );
    };

    // The chosen item large, with what training will see of it.
    const choose = (id) => {
      chosen = chosen === id ? "" : id;
      side();
    };
    let asked = ""; // what was worked out of which state of the chosen item
    const side = () => {
      const item = (value.items || []).find((i) => i.id === chosen);
      for (const [id, card] of cards) card.node.classList.toggle("t-chosen", !!item && id === chosen);
      const doctor = value.doctor || {};
      root.classList.toggle("t-with-details", !!item || !!doctor.busy || !!doctor.findings || !!doctor.error);
      const state = item && JSON.stringify([item, value.name, value.trigger, value.plan && value.plan.open]);
      if (item && asked !== state) {
        asked = state;
        trigger("look", { id: item.id });
      }
      if (!item) asked = "";
      const seen = item && value.look && value.look.id === item.id ? value.look : {};
      part.draw("look", item && [item, use(item), seen], (data) => data && looked(...data));
      part.draw("doctor", doctor, findings);
    };
    const looked = (item, used, seen) => [
      h(
        "div",
        { class: "t-details-head" },
        h("strong", { translate: "no" }, item.id),
        h("button", { class: "t-ghost", type: "button", "aria-label": "Close", onclick: () => choose(item.id) }, icon("close")),
      ),
      media(item, used),
      facts(item, used, seen.tokens),
      item.kind !== "audio" && masked(item, used, seen.cells || {}),
      pairs(item),
    ];
    const tools_of = Tuner.masks;
    const painted = (item) => () => tools_of.paint(item, upload, (sent) => trigger("maskpaint", sent));
    const masked = (item, used, cells) => {
      const cut = cells.file && frame(used);
      if (cut) {
        cut.className = "t-cells";
        cut.setAttribute("aria-label", "The mask at the resolution of the latents");
        cut.style.backgroundImage = `url("${file(cells.file)}")`;
      }
      return h(
        "section",
        { class: "t-beside", "aria-label": "Mask" },
        h("h3", {}, "Mask"),
        item.mask
          ? [
              h("p", { class: "t-quiet" }, MASKED[item.mask.by] + ". What is dark does not count."),
              h(
                "div",
                { class: "t-two" },
                h("figure", {}, h("div", { class: "t-look-art" }, h("img", { src: file(item.thumb), alt: "" }), tools_of.veil(item)), h("figcaption", {}, "Painted")),
                cut &&
                  h("figure", {}, h("div", { class: "t-look-art" }, h("img", { src: file(item.thumb), alt: "" }), cut),
                    h("figcaption", {}, `As the loss sees it: ${cells.size[0]} × ${cells.size[1]} cells, ${cells.share} % counts`)),
              ),
            ]
          : h("p", { class: "t-quiet" }, "None: all of the picture counts, unless others have masks."),
        h(
          "div",
          { class: "t-row" },
          small(item.mask ? "Change" : "Paint", painted(item), { "aria-label": `Paint the mask of ${item.id}` }),
          small("Find people", () => trigger("automask", { ids: [item.id], again: true }), { disabled: (value.maskjob || {}).state === "running" }),
          item.mask && small("Delete", () => trigger("maskdrop", { ids: [item.id] }), { "aria-label": `Delete the mask of ${item.id}` }),
        ),
      );
    };
    const pairs = (item) => {
      const kinds = Object.keys(PAIRS).filter((k) => item.pair[k] || item.lacks.includes(PAIRS[k].toLowerCase()));
      if (!kinds.length) return null;
      const side_by_side = (k) =>
        h("figure", {}, item.pair[k] ? h("div", { class: "t-look-art" }, h("img", { src: tools_of.versioned(item.pair[k]), alt: `${PAIRS[k]} of ${item.id}` }))
          : h("div", { class: "t-look-art t-missing" }, icon("warn", 18), "missing"), h("figcaption", {}, PAIRS[k]));
      return h(
        "section",
        { class: "t-beside", "aria-label": "Pair" },
        h("h3", {}, "Pair"),
        h("div", { class: "t-two" }, kinds.map(side_by_side),
          h("figure", {}, h("div", { class: "t-look-art" }, item.thumb && h("img", { src: file(item.thumb), alt: "" })), h("figcaption", {}, "What is learned"))),
      );
    };
    const media = (item, used) => {
      const broken = (e) => e.target.replaceWith(h("p", { class: "t-quiet" }, "This browser cannot play this kind of file; training can use it."));
      if (item.kind === "audio") return h("audio", { controls: true, src: file(item.file), onerror: broken, "aria-label": item.id, translate: "no" });
      if (item.kind === "video")
        return h("video", { controls: true, muted: true, loop: true, src: file(item.file), poster: file(item.thumb), onerror: broken, "aria-label": item.id, translate: "no" });
      return h("div", { class: "t-look-art" }, item.thumb && h("img", { src: file(item.thumb), alt: item.caption || item.id, translate: "no" }), frame(used));
    };
    const frame = (used) => {
      if (!used.crop || !used.scaled) return null;
      const [w, tall] = used.scaled,
        [left, top, right, bottom] = used.crop;
      const box = h("span", { class: "t-crop", role: "img", "aria-label": "The part that is trained" });
      box.style.left = (100 * left) / w + "%";
      box.style.top = (100 * top) / tall + "%";
      box.style.width = (100 * (right - left)) / w + "%";
      box.style.height = (100 * (bottom - top)) / tall + "%";
      return box;
    };
    const facts = (item, used, tokens) => {
      const rows = [["Size", item.size]];
      if (used.bucket) rows.push(["Trained at", `${used.bucket[0]} × ${used.bucket[1]}`]);
      if (used.crop) {
        const whole = used.scaled[0] * used.scaled[1],
          kept = (used.crop[2] - used.crop[0]) * (used.crop[3] - used.crop[1]);
        rows.push(["Kept of it", `${Math.round((100 * kept) / whole)} %`]);
      }
      if (used.frames) rows.push(["Frames", String(used.frames)]);
      if (used.unused) rows.push(["Not used", String(used.unused)]);
      if (tokens && tokens.exact) rows.push(["Tokens", `${tokens.has} of ${tokens.takes}${tokens.has > tokens.takes ? ": too long" : ""}`]);
      else if (tokens && tokens.has) rows.push(["Tokens", `about ${tokens.has}${tokens.takes ? ` of ${tokens.takes}` : ""} (an estimate)`]);
      if (item.origin) rows.push(["Caption", ORIGIN[item.origin]]);
      if (item.repeats) rows.push(["Repeats", `${item.repeats} in each epoch`]);
      if (item.warn) rows.push(["Note", item.warn]);
      const bad = (k, v) => k === "Note" || k === "Not used" || v.endsWith("too long");
      return [
        h("dl", { class: "t-facts" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", { title: v, class: bad(k, v) ? "t-odd" : "" }, v)])),
        h("div", { class: "t-row" }, small("Edit caption", () => edit(item.id)), small("Repeats", () => repeats([item.id]))),
      ];
    };
    const findings = (doctor) => {
      const busy = doctor.busy && h("p", { class: "t-busy", role: "status" }, "Looking at every file …");
      if (doctor.error) return h("p", { class: "t-said t-bad", role: "status" }, doctor.error);
      if (!doctor.findings) return busy || null;
      if (!doctor.findings.length && !doctor.old) return h("p", { class: "t-note", role: "status" }, "Nothing odd was found.");
      return [
        h("h3", {}, "What was found"),
        busy || (doctor.old && h("div", { class: "t-row t-old" }, h("span", { class: "t-quiet" }, "Before your last changes."), small("Examine again", () => trigger("examine", {})))),
        doctor.findings.map((f) =>
          h(
            "div",
            { class: "t-finding", "data-level": f.level },
            h("p", {}, f.text),
            h(
              "div",
              { class: "t-row" },
              f.items.length > 0 && h("button", { class: "t-button t-small", type: "button", onclick: () => showFound(f.items) }, "Show"),
              f.leave.length > 0 &&
                h("button", { class: "t-button t-small", type: "button", onclick: () => trigger("remove", { ids: f.leave }) }, `Leave out ${f.leave.length}`),
              Object.keys(f.remedy).length > 0 &&
                h(
                  "button",
                  { class: "t-button t-small", type: "button", onclick: () => trigger("remedy", { remedy: f.remedy }) },
                  "Set " + Object.entries(f.remedy).map(([k, v]) => `${k} = ${[v].flat().join(", ")}`).join("; "),
                ),
            ),
          ),
        ),
      ];
    };
    const showFound = (names) => {
      found = new Set(names);
      only = "found";
      place();
      part.draw("tools", [value.trigger, value.counts, value.name, only], tools);
    };

    const small = (text, onclick, more = {}) => h("button", { class: "t-button t-small", type: "button", onclick, ...more }, text);
    const buttons = ([changed, aside, many, busyNow]) => [
      many > 0 && small("Caption automatically", () => auto(), { disabled: busyNow }),
      many > 0 && small("Change many captions", () => bulk()),
      many > 0 && small("Masks", masks),
      many > 0 && small("Pairs", pairing),
      changed > 0 && small(`Undo change of ${changed}`, () => trigger("unbulk", {})),
      many > 0 && small("Examine", () => trigger("examine", {})),
      aside.length > 0 && small(`Left out ${aside.length}`, asideList),
    ];
    let dismissed = "";
    const working = (job, stop) => {
      const live = job.state === "running";
      if (!live && dismissed === job.text) return null;
      const hide = (e) => {
        dismissed = job.text;
        e.target.closest("[data-job]").remove();
      };
      const label = job.what === "mask" ? "Masks" : "Captions";
      return h(
        "div",
        { class: "t-note", "data-job": job.state },
        live && h("progress", { max: job.of || 1, value: job.done, "aria-label": label }),
        h("span", { role: "status" }, job.text),
        live ? small("Stop", () => trigger(stop, {})) : small("Close", hide),
      );
    };
    const strip = (plan) => {
      if (!plan || !(value.items || []).length) return null;
      if (plan.items === undefined) return plan.open ? h("p", { class: "t-plan-strip", role: "status" }, "Sizes and crops are being worked out …") : null;
      const buckets = plan.buckets.filter((b) => b.items);
      const most = Math.max(1, ...buckets.map((b) => b.items));
      const out = plan.unused || 0;
      const text = `${plan.items + out} items → ${buckets.length} ${buckets.length === 1 ? "bucket" : "buckets"} → ${plan.items} used, ${out} left out${plan.open ? " (being counted again)" : ""}`;
      const row = (b) => {
        const bar = h("span", { class: "t-bucket-bar" });
        bar.style.width = (100 * b.items) / most + "%";
        const size = [b.width ? `${b.width} × ${b.height}` : "", b.frames > 1 ? `${b.frames} frames` : "", b.seconds ? `${b.seconds} s` : ""];
        return h("div", { class: "t-bucket" }, h("span", {}, size.filter(Boolean).join(" · ")), h("span", {}, bar), h("span", {}, String(b.items)));
      };
      return h("details", { class: "t-plan-strip" }, h("summary", {}, text), buckets.map(row));
    };

    const field = (label, input) => h("label", { class: "t-field" }, h("span", {}, label), input);
    const tick = (label, input) => h("label", { class: "t-inline" }, input, label);
    const menu = (id, options) => h("select", { class: "t-input", id }, options.map(([v, text]) => h("option", { value: v }, text)));
    const text = (id, more = {}) => h("input", { class: "t-input", id, maxlength: 400, ...more });
    const sheetOf = (title, press, send_, ...parts) => {
      const form = h(
        "form",
        {
          class: "t-sheet",
          onsubmit: (e) => {
            e.preventDefault();
            close();
            send_();
          },
        },
        parts,
        h("div", { class: "t-row t-right" }, h("button", { class: "t-button t-main", type: "submit" }, press)),
      );
      const close = Tuner.modal(title, form);
      const first = form.querySelector("input, select");
      if (first) first.focus();
    };
    let sheet = null;
    const bulk = (ids = []) => {
      const act = menu("bulk-do", [["replace", "Find and replace"], ["prefix", "Put in front of every caption"]]);
      const find = text("bulk-find"),
        replace = text("bulk-replace"),
        prefix = text("bulk-prefix");
      const whole = h("input", { type: "checkbox" }),
        exact = h("input", { type: "checkbox" });
      const many = h("div", {}, field("Find", find), field("Replace with", replace), tick("Whole words", whole), tick("Same capitals", exact));
      const front = h("div", { hidden: true }, field("Text in front", prefix));
      act.addEventListener("change", () => {
        many.hidden = act.value !== "replace";
        front.hidden = !many.hidden;
      });
      const out = h("div", { class: "t-preview", role: "status", tabindex: "0" }); // keys scroll it
      let asked = null;
      const go = small("Change them", () => {
        close();
        sheet = null;
        trigger("bulk", { ...asked, apply: true });
      }, { disabled: true, class: "t-button t-small t-main" });
      const look = (e) => {
        e.preventDefault();
        trigger("bulk", {
          ids, do: act.value, find: find.value, replace: replace.value, prefix: prefix.value, words: whole.checked, case: exact.checked,
        });
      };
      const form = h("form", { class: "t-sheet", onsubmit: look }, field("What to do", act), many, front, out,
        h("div", { class: "t-row t-right" }, h("button", { class: "t-button t-small", type: "submit" }, "Preview"), go));
      form.addEventListener("input", () => {
        go.disabled = true;
      });
      const close = Tuner.modal(ids.length ? `Change the captions of ${ids.length}` : "Change many captions", form);
      find.focus();
      sheet = (preview) => {
        asked = preview.asked;
        go.disabled = !preview.rows.length;
        const caption = (tag, said) => h(tag, said ? { translate: "no", dir: "auto" } : {}, said || "no caption");
        const row = ([id, before, after]) =>
          h("div", { class: "t-change" }, h("small", { translate: "no" }, id), caption("del", before), caption("ins", after));
        out.replaceChildren(h("p", {}, preview.text), ...preview.rows.map(row));
      };
    };
    const auto = (ids = []) => {
      const model = menu("auto-model", Object.entries(value.models || {}));
      const purpose = menu("auto-purpose", (value.purposes || []).map((p) => [p, PURPOSES[p] || p]));
      const again = h("input", { type: "checkbox" });
      const go = () => trigger("autocaption", { ids, model: model.value, purpose: purpose.value, again: again.checked });
      sheetOf(ids.length ? `Caption ${ids.length} automatically` : "Caption automatically", "Write captions", go, field("Captioner", model), field("What is to be learned", purpose),
        tick("Write automatic captions anew", again), h("p", { class: "t-quiet" }, "Captions that you wrote or edited are never changed."));
    };
    const repeats = (ids) => {
      const now = new Set(value.items.filter((i) => ids.includes(i.id)).map((i) => i.repeats || value.repeats));
      const times = h("input", { class: "t-input", type: "number", id: "repeats-times", min: 1, max: 1000, step: 1, required: true, value: now.size === 1 ? [...now][0] : "" });
      const quick = [1, 2, 3, 5, 10].map((n) =>
        small(String(n), () => { times.value = n; times.focus(); }, { "aria-label": n === 1 ? "Once" : `${n} times` }));
      sheetOf(ids.length === 1 ? `Repeats of ${ids[0]}` : `Repeats of ${ids.length}`, "Set", () => trigger("repeats", { ids, times: Number(times.value) }),
        field("How often each is seen in one epoch", times), h("div", { class: "t-row" }, quick),
        h("p", { class: "t-quiet" }, `The others are seen ${value.repeats} × in each epoch. More for rare views or the best pictures, so that they count as much; files are not copied.`));
      times.select();
    };
    const brought = (what, words) => [
      small(`Upload ${words}`, () => {
        closeSheet();
        bring(what);
      }),
      small("Take a folder of this machine", () => {
        closeSheet();
        from_folder(what, words);
      }),
    ];
    let closeSheet = () => {};
    const masks = () => {
      const { count, used, deleted } = value.masks;
      const items = (value.items || []).filter((i) => i.kind !== "audio");
      const again = h("input", { type: "checkbox" });
      const heed = h("input", { type: "checkbox", checked: used });
      heed.addEventListener("change", () => trigger("maskuse", { use: heed.checked }));
      const press = (name, sent = () => ({})) => () => {
        closeSheet();
        trigger(name, sent());
      };
      const body = h(
        "div",
        { class: "t-sheet" },
        h("p", {}, "A mask says which part of a picture is learned. Open a picture to paint its mask, or:"),
        h("div", { class: "t-row" }, small("Find people in all pictures", press("automask", () => ({ again: again.checked })), { disabled: (value.maskjob || {}).state === "running" }),
          tick("make automatic masks anew", again)),
        h("p", { class: "t-quiet" }, "A small network on this machine marks people. Painted masks are never changed."),
        h("div", { class: "t-row" }, brought("mask", "masks")),
        h("p", { class: "t-quiet" }, "Masks have the name of their picture; white counts, black does not."),
        count > 0 && [
          h("div", { class: "t-row" }, count < items.length && small(`Let the other ${items.length - count} count whole`, press("maskrest")), small(`Delete all ${count}`, press("maskdrop"))),
          tick("Training heeds the masks", heed),
        ],
        deleted > 0 && h("div", { class: "t-row" }, small(`Bring back ${deleted} deleted`, press("maskback"))),
      );
      closeSheet = Tuner.modal("Masks", body);
    };
    const pairing = () => {
      const reads = value.reads || [];
      const row = (k, text) => [
        h("h3", {}, PAIRS[k] + "s"),
        h("p", { class: "t-quiet" }, text, " ", reads.includes(k) ? "The chosen recipe reads them." : "The chosen recipe does not read them."),
        h("div", { class: "t-row" }, brought(k, `${k} pictures`)),
      ];
      const body = h("div", { class: "t-sheet" },
        h("p", {}, "Pairs are two pictures of the same name: one to start from, one to learn. The pictures of this data set are what is learned."),
        row("control", "Edges, depth, poses: what a ControlNet is to follow."),
        row("reference", "What an edit starts from, or the first frame of a video."));
      closeSheet = Tuner.modal("Pairs", body);
    };
    const from_folder = (what = "", words = "") => {
      const path = text("folder-path", { placeholder: "/home/me/pictures" });
      sheetOf(what ? `A folder of ${words}` : "Add a folder of this machine", "Copy", () => trigger("folder", { path: path.value, what }), field("Its path", path),
        h("p", { class: "t-quiet" }, what ? "Pictures with the names of yours are copied; the folder itself is only read."
          : "Its pictures, videos, sounds and .txt captions are copied; the folder itself is only read."));
    };
    const asideList = () => {
      const row = (id) => h("div", { class: "t-row" }, h("span", { class: "t-grow-text", translate: "no" }, id),
        small("Bring back", (e) => { e.target.closest(".t-row").remove(); trigger("undo", { ids: [id] }); }, { "aria-label": `Bring back ${id}` }));
      sheetOf("Left out", "Bring all back", () => trigger("undo", { ids: value.aside }), h("div", { class: "t-preview" }, value.aside.map(row)));
    };

    const bar = h(
      "div",
      { class: "t-bar" },
      part.node("sets", "div", { class: "t-bar-group" }),
      part.node("tools", "div", { class: "t-bar-group t-grow" }),
      part.node("add", "div", { class: "t-bar-group" }),
    );
    const second = part.node("second", "div", { class: "t-bar t-bar-second" });
    root.append(
      bar,
      second,
      part.node("picked"),
      part.node("job"),
      part.node("maskjob"),
      part.node("note"),
      part.node("busy", "div", { class: "t-busy-line" }),
      part.node("none"),
      h(
        "div",
        { class: "t-split" },
        grid,
        h("aside", { class: "t-details", "aria-label": "Details" }, part.node("look"), part.node("doctor")),
      ),
      part.node("plan"),
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
          h("div", { class: "t-row t-right" }, h("button", { class: "t-button t-main", type: "submit" }, "Make it")),
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
    const tools = ([word, counts]) => {
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
        if (only !== "all" && only !== "found" && !counts[only]) only = "all";
        const seg = ["all", "bare", "warn", "lone", "unused", "found"]
          .filter((k) => (k === "found" ? only === k : k === "all" || counts[k]))
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
              { all: "All", bare: "No caption", warn: "Needs a look", lone: "No pair", unused: "Unused", found: "Found" }[k],
              " ",
              String(k === "found" ? found.size : counts[k]),
            ),
          );
        return [
          trigger_field(word),
          find,
          seg.length > 1 && h("div", { class: "t-seg", role: "group", "aria-label": "Show" }, seg),
        ];
      };
    // A patch holds what changed; of another data set than the one shown it is of no use, so all is asked for.
    const take = (sent) => {
      const { patch, items, order, ...parts } = sent;
      if (!patch) return sent;
      if (sent.name !== value.name) {
        trigger("whole", {});
        return value;
      }
      const known = new Map(value.items.map((i) => [i.id, i]));
      for (const item of items) known.set(item.id, item);
      const ids = order || value.items.map((i) => i.id);
      return { ...value, ...parts, items: ids.map((id) => known.get(id)).filter(Boolean) };
    };
    return (fresh) => {
      value = take(fresh);
      part.draw("sets", value.sets, (sets) => {
        const select = h(
          "select",
          { class: "t-input", "aria-label": "Data set" },
          sets.map((o) =>
            h("option", { value: o.name, selected: o.chosen, translate: o.name === "demo" ? null : "no" }, `${o.title} (${o.count})`),
          ),
        );
        select.addEventListener("change", () => trigger("pick", { name: select.value }));
        return [
          select,
          h("button", { class: "t-button", type: "button", onclick: fresh_set }, icon("plus", 14), "New"),
        ];
      });
      part.draw("tools", [value.trigger, value.counts, value.name, only], tools);
      part.draw("second", [value.bulk, value.aside, (value.items || []).length, (value.job || {}).state === "running"], buttons);
      part.draw("job", value.job, (job) => job && job.state && working(job, "captionstop"));
      part.draw("maskjob", value.maskjob, (job) => job && job.state && working(job, "maskstop"));
      part.draw("add", 1, () => [
        h(
          "button",
          { class: "t-button", type: "button", onclick: () => bring("") },
          icon("upload", 14),
          "Add files",
        ),
        h("button", { class: "t-button", type: "button", onclick: () => from_folder() }, "Folder"),
      ]);
      const said = told(value.told);
      part.draw(
        "note",
        [said.note || "", said.undo || []],
        ([note, undo]) =>
          (note || undo.length > 0) &&
          h(
            "p",
            { class: "t-note", role: "status" },
            h("span", {}, note),
            undo.length > 0 &&
              h(
                "button",
                { class: "t-link", type: "button", onclick: () => trigger("undo", { ids: undo }) },
                icon("undo", 13),
                "Undo",
              ),
          ),
      );
      place();
      const here = new Set((value.items || []).map((i) => i.id));
      for (const id of [...picked]) if (!here.has(id)) picked.delete(id);
      mark();
      side();
      const open = part.node("plan").querySelector("details[open]");
      if (part.draw("plan", [value.plan, !(value.items || []).length], ([plan]) => strip(plan)) && open) part.node("plan").querySelector("details").open = true;
      if (sheet && value.preview && value.preview.rows) sheet(value.preview);
    };
  });
