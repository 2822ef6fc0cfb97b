// The slim header: project, device, running job, light and dark.
Tuner.frame = (element, trigger, props, watch) =>
  Tuner.widget(element, props, watch, (root) => {
    const { h, icon, slots, go, marks } = Tuner;
    const part = slots();
    const ring = (percent) => {
      const { s } = Tuner,
        full = 2 * Math.PI * 6;
      return s(
        "svg",
        { viewBox: "0 0 16 16", width: 16, height: 16, class: "t-ring", "aria-hidden": "true" },
        s("circle", { cx: 8, cy: 8, r: 6, class: "t-ring-back" }),
        s("circle", {
          cx: 8,
          cy: 8,
          r: 6,
          class: "t-ring-front",
          "stroke-dasharray": `${(full * percent) / 100} ${full}`,
          transform: "rotate(-90 8 8)",
        }),
      );
    };
    root.append(
      h(
        "div",
        { class: "t-brand" },
        h("span", { class: "t-logo", "aria-hidden": "true" }),
        h("h1", {}, "Tuner"),
        part.node("project", "span", { class: "t-project", translate: "no" }),
      ),
      h(
        "div",
        { class: "t-frame-right" },
        part.node("job", "span"),
        part.node("device", "span"),
        Tuner.words.control(),
        h(
          "button",
          {
            class: "t-ghost",
            type: "button",
            "aria-label": "Light or dark",
            title: "Light or dark",
            onclick: () => Tuner.dark(!document.body.classList.contains("dark")),
          },
          h("span", { class: "t-when-light" }, icon("moon")),
          h("span", { class: "t-when-dark" }, icon("sun")),
        ),
      ),
    );
    return (value) => {
      part.draw("project", value.project, (p) => p);
      part.draw(
        "device",
        value.device,
        (d) => d && d.name && h("span", { class: "t-chip", title: d.reason || "" }, d.name),
      );
      part.draw(
        "job",
        value.job,
        (job) =>
          job &&
          h(
            "button",
            {
              class: "t-chip t-chip-live",
              type: "button",
              title: "Open Train",
              onclick: () => {
                trigger("openjob", { run: job.run });
                go("train");
              },
            },
            ring(job.percent),
            h("span", {}, job.text),
          ),
      );
      marks(value.marks || {});
    };
  });
