// The mask of one picture, painted over it: white counts, black does not. All of it works without a mouse, too.
window.Tuner.masks = (() => {
  const { h, icon, file } = Tuner;
  const EDGE = 1024,
    KEPT = 20;

  // A mask file that changed has a new address, so that the browser does not show the old one.
  const versioned = ([path, version]) => file(path) + "?v=" + version;
  const shown = (item) =>
    /\.(png|jpe?g|webp|gif|bmp|avif)$/i.test(item.file) && item.kind === "image" ? file(item.file) : file(item.thumb);
  // The mask as a dark veil over what does not count.
  const veil = (item, label = "The mask: what is dark does not count") =>
    h("img", { class: "t-veil", src: versioned(item.mask.file), alt: label });

  const loaded = (source) =>
    new Promise((done, failed) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = failed;
      image.src = source;
    });

  const paint = async (item, upload, save) => {
    const picture = await loaded(shown(item));
    const before = item.mask && (await loaded(versioned(item.mask.file)));
    const scale = EDGE / Math.max(picture.naturalWidth, picture.naturalHeight);
    const wide = Math.max(1, Math.round(picture.naturalWidth * scale)),
      tall = Math.max(1, Math.round(picture.naturalHeight * scale));
    const canvas = h("canvas", {
      width: wide,
      height: tall,
      tabindex: 0,
      role: "img",
      class: "t-mask-canvas",
      "aria-label": `Mask of ${item.id}. Arrow keys move the brush, space paints.`,
    });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const flood = (colour) => {
      pen.fillStyle = colour;
      pen.fillRect(0, 0, wide, tall);
    };
    flood("black");
    if (before) pen.drawImage(before, 0, 0, wide, tall);

    let radius = 60,
      erasing = false,
      at = [wide / 2, tall / 2],
      last = null;
    const past = [];
    const keep = () => {
      past.push(pen.getImageData(0, 0, wide, tall));
      if (past.length > KEPT) past.shift();
      undo.disabled = false;
    };
    const stroke = (from, to) => {
      pen.strokeStyle = pen.fillStyle = erasing ? "black" : "white";
      pen.lineWidth = 2 * radius;
      pen.lineCap = "round";
      pen.beginPath();
      pen.moveTo(...from);
      pen.lineTo(...to);
      pen.stroke();
      pen.beginPath();
      pen.arc(...to, radius, 0, 2 * Math.PI);
      pen.fill();
      count();
    };
    const ring = h("span", { class: "t-mask-ring", "aria-hidden": "true" });
    const place = () => {
      ring.style.left = (100 * at[0]) / wide + "%";
      ring.style.top = (100 * at[1]) / tall + "%";
      ring.style.width = (200 * radius) / wide + "%";
      ring.classList.toggle("t-erasing", erasing);
    };
    const spot = (e) => {
      const box = canvas.getBoundingClientRect();
      return [((e.clientX - box.left) * wide) / box.width, ((e.clientY - box.top) * tall) / box.height];
    };
    canvas.addEventListener("pointerdown", (e) => {
      if (e.button !== 0) return;
      canvas.setPointerCapture(e.pointerId);
      keep();
      last = at = spot(e);
      stroke(last, last);
      place();
    });
    canvas.addEventListener("pointermove", (e) => {
      at = spot(e);
      if (last && e.buttons & 1) {
        stroke(last, at);
        last = at;
      }
      place();
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, () => {
        last = null;
      });

    const share = h("span", { class: "t-quiet", role: "status" });
    let counting = 0;
    const count = () => {
      window.clearTimeout(counting);
      counting = window.setTimeout(() => {
        const data = pen.getImageData(0, 0, wide, tall).data;
        let sum = 0;
        for (let i = 0; i < data.length; i += 64) sum += data[i];
        share.textContent = `${Math.round((100 * sum) / 255 / (data.length / 64))} % counts`;
      }, 120);
    };
    const all = (change) => {
      keep();
      change();
      count();
    };
    const inverse = () => {
      const seen = pen.getImageData(0, 0, wide, tall);
      for (let i = 0; i < seen.data.length; i += 4)
        for (const c of [0, 1, 2]) seen.data[i + c] = 255 - seen.data[i + c];
      pen.putImageData(seen, 0, 0);
    };
    const button = (text, onclick, more = {}) => h("button", { class: "t-button t-small", type: "button", onclick, ...more }, text);
    const modes = [false, true].map((wanted) =>
      button(wanted ? "Eraser" : "Brush", () => mode(wanted), {
        title: wanted ? "Key E: what is erased does not count" : "Key B: what is painted counts",
        "aria-pressed": String(wanted === erasing),
      }),
    );
    const mode = (wanted) => {
      erasing = wanted;
      modes.forEach((b, i) => {
        b.setAttribute("aria-pressed", String(!!i === wanted));
        b.classList.toggle("t-on", !!i === wanted);
      });
      place();
    };
    const size = h("input", { type: "range", min: 4, max: 240, step: 4, value: radius, "aria-label": "Size of the brush" });
    size.addEventListener("input", () => {
      radius = +size.value;
      place();
    });
    const resize = (by) => {
      size.value = radius = Math.min(240, Math.max(4, radius + by));
      place();
    };
    const undo = button(
      "Undo",
      () => {
        const old = past.pop();
        if (old) pen.putImageData(old, 0, 0);
        undo.disabled = !past.length;
        count();
        if (undo.disabled) canvas.focus();
      },
      { disabled: true, title: "Ctrl+Z" },
    );
    const ready = button("Save mask", async () => {
      ready.disabled = true;
      const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
      const sent = await upload(new File([blob], "mask.png", { type: "image/png" }));
      close();
      save({ id: item.id, path: sent.path });
    });
    ready.classList.add("t-main");

    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const keys = (e) => {
      const typed = e.key.toLowerCase();
      if ((e.ctrlKey || e.metaKey) && typed === "z") undo.click();
      else if (e.ctrlKey || e.metaKey || e.altKey) return;
      else if (typed === "b") mode(false);
      else if (typed === "e") mode(true);
      else if (e.key === "[") resize(-12);
      else if (e.key === "]") resize(12);
      else if (e.target === canvas && move[e.key]) {
        const step = e.shiftKey ? 4 : radius / 2;
        const from = at;
        at = [
          Math.min(wide, Math.max(0, at[0] + step * move[e.key][0])),
          Math.min(tall, Math.max(0, at[1] + step * move[e.key][1])),
        ];
        if (last) stroke(from, at);
        place();
      } else if (e.target === canvas && e.key === " ") {
        if (!e.repeat) {
          keep();
          stroke(at, at);
        }
        last = at; // arrows paint while space is held
      } else return;
      e.preventDefault();
    };
    canvas.addEventListener("keyup", (e) => {
      if (e.key === " ") last = null;
    });

    const stage = h("div", { class: "t-mask-stage" }, h("img", { src: picture.src, alt: item.caption || item.id, draggable: "false" }), canvas, ring);
    stage.style.aspectRatio = `${wide} / ${tall}`;
    stage.style.setProperty("--ratio", wide / tall);
    const tools = h(
      "div",
      { class: "t-row t-mask-tools" },
      h("div", { class: "t-seg", role: "group", "aria-label": "What the pointer does" }, modes),
      h("label", { class: "t-inline" }, "Size", size),
      undo,
      button("All", () => all(() => flood("white")), { title: "The whole picture counts" }),
      button("Nothing", () => all(() => flood("black")), { title: "Begin with nothing" }),
      button("Inverse", () => all(inverse), { title: "What counts and what does not change places" }),
    );
    const body = h(
      "div",
      { class: "t-mask" },
      tools,
      stage,
      h("p", { class: "t-quiet" }, "Bright counts, dark does not. Keys: B brush, E eraser, [ ] size, arrows and space paint, Ctrl+Z undoes."),
      h("div", { class: "t-row t-right" }, share, ready),
    );
    body.addEventListener("keydown", keys);
    const close = Tuner.modal(`Mask of ${item.id}`, body);
    body.closest(".t-modal").classList.add("t-wide");
    mode(false);
    count();
    canvas.focus();
  };
  return { paint, veil, versioned, shown };
})();
