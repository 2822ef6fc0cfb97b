// The pages over the library that write an adapter for other programs and publish it to the Hugging Face Hub.
Tuner.outgoing = (trigger) => {
  const { h, icon, file } = Tuner;
  const button = (text, act, extra = {}) =>
    h("button", { class: "t-button t-small", type: "button", onclick: act, ...extra }, text);
  const labelled = (text, node) => h("label", { class: "t-pub-field" }, h("span", {}, text), node);
  const form = (p) => {
    const repo = h("input", { class: "t-input", id: "p-repo", placeholder: `your-name/${p.wish}`, value: p.repo || "",
      spellcheck: "false", autocapitalize: "off" });
    const again = h("input", { type: "checkbox", id: "p-update", checked: Boolean(p.update) });
    const token = h("input", { class: "t-input", id: "p-token", type: "password", autocomplete: "off" });
    let open = p.public;
    const asked = () => ({ name: p.run, export: p.export, repo: repo.value, public: open, update: again.checked });
    const stale = () => {
      const b = document.getElementById("p-send");
      if (b) b.disabled = true;
    };
    repo.addEventListener("input", stale);
    repo.addEventListener("keydown", (e) => e.key === "Enter" && trigger("prepare", asked()));
    const who = (name, value, title, text) =>
      h("label", { class: "t-pub-who" },
        h("input", { type: "radio", name: "p-who", id: name, checked: open === value, onchange: () => ((open = value), stale()) }),
        h("span", {}, h("strong", {}, title), h("small", {}, text)));
    const ready = p.stage === "ready";
    return [
      labelled("Where on the Hugging Face Hub", repo),
      h("fieldset", { class: "t-formats t-pub-two" },
        h("legend", {}, "Who can see it"),
        who("p-private", false, "Only you", "Private; you can open it later on the Hub."),
        who("p-public", true, "Everyone", "Public, with the card and the samples.")),
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
        p.gallery.length > 0 && h("div", { class: "t-pub-gallery" },
          p.gallery.map((one) => h("figure", {}, h("img", { src: file(one.file), alt: "" }), h("figcaption", { translate: "no" }, one.prompt)))),
        p.parcel.notes.map((n) => h("p", { class: "t-note" }, n)),
        h("details", {}, h("summary", {}, "The card"), h("pre", { class: "t-yaml t-pub-card", tabindex: 0, translate: "no" }, p.parcel.card)),
        labelled(p.login ? "You are logged in. Another token, only for this upload" : "Token with write access", token),
        h("p", { class: "t-quiet" }, "A token entered here is used for this upload and not kept."),
        h("label", { class: "t-row" }, again, "Send into a repository that exists already"),
        button(
          "Publish",
          () => {
            trigger("publish", { ...asked(), token: token.value });
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
      button("Try again", () => trigger("prepare", { name: p.run, export: p.export, repo: p.repo, public: p.public, update: p.made || p.update }),
        { id: "p-again" }),
    ];
  };
  const PRECISIONS = { fp32: "fp32: exactly what trained", bf16: "bf16: half the size", fp16: "fp16: half the size" };
  const METADATA = {
    share: "Settings only: no folders, captions, comments or times",
    full: "Everything about the training",
    minimal: "Only what programs need to load it",
  };
  const USES = {
    diffusers: "Python, and the programs that are built on it",
    comfyui: "Goes into its folder models/loras",
    kohya: "For web UIs and trainers that read kohya's names",
  };
  const wish = (p) => {
    const boxes = p.formats.map((f) => [f, h("input", { type: "checkbox", id: `x-${f.format}`, checked: !f.reason,
      disabled: Boolean(f.reason) })]);
    const select = (id, words, at) => {
      const node = h("select", { class: "t-input", id }, Object.entries(words).map(([k, t]) => h("option", { value: k }, t)));
      node.value = at;
      return node;
    };
    const precision = select("x-precision", p.precision ? PRECISIONS : { "": "As the file has it", ...PRECISIONS }, p.precision);
    const tells = select("x-metadata", METADATA, p.metadata);
    const family = select("x-family", { "": "Choose …", ...Object.fromEntries(p.families.map((f) => [f.name, f.title])) }, "");
    const write = button("Write the files", () =>
      trigger("write", { id: p.id, formats: boxes.filter(([, b]) => b.checked).map(([f]) => f.format),
        precision: precision.value, metadata: tells.value, family: family.value }),
      { id: "x-write", class: "t-button t-go" });
    const ready = () => {
      write.disabled = (boxes.length > 0 && !boxes.some(([, b]) => b.checked)) || (p.families.length > 0 && !family.value);
    };
    [family, ...boxes.map(([, b]) => b)].forEach((n) => n.addEventListener("change", ready));
    ready();
    return [
      p.families.length > 0 && labelled("The file does not say which model it is for", family),
      p.whole
        ? h("p", {}, `${p.whole}. This way of training has no other files.`)
        : h(
            "fieldset",
            { class: "t-formats" },
            h("legend", {}, "For which programs"),
            boxes.map(([f, box]) =>
              h("label", { class: f.reason ? "t-refused" : "" }, box, h("span", {}, f.title, h("small", {}, f.reason || USES[f.format])))),
          ),
      !p.whole && labelled("Numbers", precision),
      !p.whole && labelled("What the file tells", tells),
      write,
    ];
  };
  const badge = (f) =>
    f.problems.length
      ? h("span", { class: "t-proof t-wrong" }, icon("warn", 13), "not as it was trained")
      : h("span", { class: "t-proof" }, icon("check", 13), f.badge);
  const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB`
    : `${(bytes / 1e3).toFixed(1)} kB`);
  const written = (p) => [
    h(
      "ul",
      { class: "t-written" },
      p.files.map((f) =>
        h(
          "li",
          {},
          h("div", { class: "t-written-head" }, h("strong", {}, f.title), badge(f)),
          f.problems.map((text) => h("p", { class: "t-warned" }, text)),
          f.parts.map((one) =>
            h("a", { class: "t-button t-small", href: file(one.file), download: one.name.split("/").pop(),
              "aria-label": `Download ${one.name} for ${f.title}` }, icon("down", 14), one.name,
              h("small", {}, size(one.bytes)))),
        ),
      ),
    ),
    p.notes.map((text) => h("p", { class: "t-note" }, text)),
    h("p", { class: "t-quiet" }, "On this machine they lie in ", h("code", {}, p.folder)),
    h(
      "div",
      { class: "t-row" },
      p.files.every((f) => !f.problems.length) &&
        button("Publish", () => trigger("prepare", { name: p.run, export: p.job }), { id: "x-publish", class: "t-button t-go" }),
      button("Write others", () => trigger("export", { id: p.id }), { class: "t-button" }),
    ),
  ];
  const exported = (p) => {
    if (p.stage === "form") return wish(p);
    if (p.stage === "working")
      return h("p", { role: "status" }, h("span", { class: "t-spin" }), "The files are written, opened again and compared …");
    if (p.stage === "done") return written(p);
    return [
      h("p", { class: "t-said t-bad", role: "alert" }, p.trouble),
      button("Try again", () => trigger("export", { id: p.id })),
    ];
  };
  const publish = (p) => [
    h("h2", {}, "Publish"),
    h("p", { class: "t-quiet", translate: "no" }, [p.run, p.export].filter(Boolean).join(" · ")),
    ["form", "ready"].includes(p.stage) ? form(p) : state(p),
  ];
  const over = (p) =>
    p && [
      button("Back to the library", () => trigger("closepage", {})),
      p.kind === "export"
        ? [h("h2", {}, "Export"), h("p", { class: "t-quiet", translate: Tuner.named(p.label) }, p.label), exported(p)]
        : publish(p),
    ];
  return over;
};
