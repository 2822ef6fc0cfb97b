// Small tools that all widgets share. Text from outside only ever becomes a text node: nothing here takes HTML.
window.Tuner = window.Tuner || {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  // One listener per element and event, whose action may be exchanged later.
  const hear = (node, name, action) => {
    node.heard = node.heard || {};
    if (!node.heard[name]) node.addEventListener(name, (e) => node.heard[name](e));
    node.heard[name] = action;
  };
  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) hear(node, name.slice(2), value);
      else if (name === "value") node.value = value;
      else if (name === "checked") node.checked = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
    return node;
  };
  const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const file = (path) => (path ? "gradio_api/file=" + path.split("/").map(encodeURIComponent).join("/") : "");

  const PATHS = {
    plus: "M8 3v10M3 8h10",
    close: "M4 4l8 8M12 4l-8 8",
    check: "M3 8.5l3.2 3.2L13 5",
    sun: "M8 5a3 3 0 100 6 3 3 0 000-6zM8 1v2M8 13v2M1 8h2M13 8h2M3 3l1.4 1.4M11.6 11.6L13 13M13 3l-1.4 1.4M4.4 11.6L3 13",
    moon: "M13 9.5A5.5 5.5 0 016.5 3 5.5 5.5 0 1013 9.5z",
    warn: "M8 2.5L14.5 13.5h-13zM8 6.5v3.2M8 11.6v.1",
    upload: "M8 11V3M4.5 6.5L8 3l3.5 3.5M3 13h10",
    down: "M8 3v8M4.5 7.5L8 11l3.5-3.5M3 13.5h10",
    undo: "M3 6h6.5a3.5 3.5 0 010 7H6M3 6l3-3M3 6l3 3",
    image: "M2.5 3h11v10h-11zM2.5 11l3.2-3.2 2.6 2.6 2-2 3.2 3.2M10.5 6.2v.1",
    search: "M7 2.5a4.5 4.5 0 100 9 4.5 4.5 0 000-9zM10.4 10.4L14 14",
    info: "M8 2a6 6 0 100 12A6 6 0 008 2zM8 7.2v3.6M8 5v.1",
    play: "M5 3.5v9l7.5-4.5z",
    sound: "M2.5 6v4h2.5l3.5 3V3L5 6zM11 6a3 3 0 010 4M12.7 4.2a5.5 5.5 0 010 7.6",
    mask: "M8 2a6 6 0 100 12A6 6 0 008 2zM8 2v12",
    chevron: "M4 6l4 4 4-4",
    up: "M4 10l4-4 4 4",
    bin: "M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5M6.8 7v3.6M9.2 7v3.6",
    globe: "M8 2a6 6 0 100 12A6 6 0 008 2zM2 8h12M8 2c4.5 3.5 4.5 8.5 0 12M8 2c-4.5 3.5-4.5 8.5 0 12",
  };
  const icon = (name, size = 16) =>
    s(
      "svg",
      { viewBox: "0 0 16 16", width: size, height: size, class: "t-icon", "aria-hidden": "true" },
      s("path", { d: PATHS[name] }),
    );

  // Makes the children of a node like `fresh` and keeps every element that can stay: focus, pointer, drawers, players
  // and what was typed outlive it. Elements with different data-k are different.
  const alike = (a, b) => a.nodeName === b.nodeName && (a.nodeType !== 1 || a.dataset.k === b.dataset.k);
  const become = (now, next) => {
    if (next.nodeType !== 1) {
      if (now.data !== next.data) now.data = next.data;
      return;
    }
    for (const { name } of [...now.attributes])
      if (name !== "open" && !next.hasAttribute(name)) now.removeAttribute(name);
    for (const { name, value } of [...next.attributes])
      if (name !== "open" && now.getAttribute(name) !== value) now.setAttribute(name, value);
    for (const name of Object.keys({ ...now.heard, ...next.heard }))
      hear(now, name, (next.heard && next.heard[name]) || (() => {}));
    settle(now, [...next.childNodes]);
  };
  const settle = (node, fresh) => {
    const list = [fresh].flat(Infinity).filter(Boolean);
    list.forEach((one, i) => {
      const next = typeof one === "string" ? document.createTextNode(one) : one,
        now = node.childNodes[i];
      if (!now) node.append(next);
      else if (alike(now, next)) become(now, next);
      else now.replaceWith(next);
    });
    while (node.childNodes.length > list.length) node.lastChild.remove();
  };

  // Draws a named part again only when its data changed; `settle` keeps the elements that can stay.
  const slots = () => {
    const nodes = {},
      seen = {};
    const changed = (name, data) => {
      const text = JSON.stringify(data === undefined ? null : data);
      if (seen[name] === text) return false;
      seen[name] = text;
      return true;
    };
    return {
      node: (name, tag = "div", attributes = {}) => (nodes[name] = nodes[name] || h(tag, attributes)),
      draw: (name, data, make) => {
        if (!changed(name, data)) return false;
        nodes[name].replaceChildren(...[make(data)].flat(Infinity).filter(Boolean));
        return true;
      },
      settle: (name, data, make) => {
        if (!changed(name, data)) return false;
        settle(nodes[name], make(data));
        return true;
      },
    };
  };

  const widget = (element, props, watch, setup) => {
    const root = element.querySelector(".t-widget");
    if (root.dataset.ready) return;
    root.dataset.ready = "1";
    const draw = setup(root);
    const run = () => {
      if (props.value) draw(props.value);
    };
    watch("value", run);
    run();
  };

  const asked = new URL(window.location.href).searchParams.get("tab");
  const screens = ["dataset", "recipe", "train", "compare", "library", "system", "help"];
  const tabs = () => [...document.querySelectorAll("#screens button[role=tab]")].filter((b) => b.textContent.trim());
  const tabOf = (name) => tabs().find((b) => b.dataset.tabId === name);
  const go = (name) => {
    const b = tabOf(name);
    if (b) b.click();
  };
  const url = (changes) => {
    const at = new URL(window.location.href);
    for (const [key, value] of Object.entries(changes))
      value ? at.searchParams.set(key, value) : at.searchParams.delete(key);
    if (at.href !== window.location.href) window.history.replaceState(null, "", at.href);
  };
  // Nothing plays on behind a window that was closed or a screen that was left.
  const hush = (where) => where.querySelectorAll("audio,video").forEach((player) => player.pause());
  const followTabs = () => {
    const list = document.querySelector("#screens [role=tablist]");
    if (!list) return window.setTimeout(followTabs, 150);
    // A deep link opens its screen at once, and is not overwritten before.
    let last = asked ? "" : "dataset",
      awaited = screens.includes(asked) ? asked : "";
    const settled = () => {
      awaited = "";
    };
    window.setTimeout(settled, 6000);
    list.addEventListener("pointerdown", settled);
    if (awaited) go(awaited);
    const note = () => {
      const open = tabs().find((b) => b.getAttribute("aria-selected") === "true");
      const name = open && open.dataset.tabId;
      if (name === awaited) settled();
      if (name && !awaited && name !== last && screens.includes(name)) {
        last = name;
        hush(document);
        url({ tab: name });
        open.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone the row of tabs is wider than the window
        window.scrollTo(0, 0);
      }
    };
    new MutationObserver(note).observe(list, {
      subtree: true,
      childList: true,
      attributes: true,
      attributeFilter: ["aria-selected"],
    });
    note();
  };
  document.addEventListener("keydown", (e) => {
    const all = tabs(),
      at = all.indexOf(document.activeElement);
    const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (at < 0 || !move) return;
    const next = all[(at + move + all.length) % all.length];
    next.focus();
    next.click();
  });
  followTabs();

  const marks = (found) => {
    for (const name of screens) {
      const b = tabOf(name);
      if (!b) continue;
      const mark = found[name] || {};
      b.dataset.mark = mark.kind || "";
      b.title = mark.text || "";
    }
  };

  // What this browser keeps of the user's choices. Private windows may refuse; then nothing is kept.
  const keep = (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch (error) {
      /* not kept */
    }
  };
  const kept = (name) => {
    try {
      return localStorage.getItem(name);
    } catch (error) {
      return null;
    }
  };
  const dark = (wanted) => {
    document.body.classList.toggle("dark", wanted);
    keep("tuner-theme", wanted ? "dark" : "light");
  };
  // "light", "dark", or "" where the browser decides.
  const look = () => kept("tuner-theme") || "";
  const setLook = (wanted) => {
    dark(wanted ? wanted === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches);
    if (!wanted) keep("tuner-theme", "");
  };
  const themed = new URL(window.location.href).searchParams.get("__theme");
  const early = () => {
    const known = kept("tuner-theme");
    if (known && !themed) document.body.classList.toggle("dark", known === "dark");
  };
  document.body ? early() : document.addEventListener("DOMContentLoaded", early);
  window.addEventListener("load", () => window.setTimeout(early, 50));

  // own: the title is the user's text, which stays as it is in any language.
  const modal = (title, content, own) => {
    const before = document.activeElement;
    const close = () => {
      hush(shade);
      shade.remove();
      document.removeEventListener("keydown", keys, true);
      if (before) before.focus();
    };
    const keys = (e) => {
      if (e.key === "Escape") {
        e.stopPropagation();
        close();
      }
    };
    const shade = h(
      "div",
      {
        class: "t-shade",
        onclick: (e) => {
          if (e.target === shade) close();
        },
      },
      h(
        "div",
        { class: "t-modal", role: "dialog", "aria-modal": "true", "aria-labelledby": "t-modal-title" },
        h(
          "div",
          { class: "t-modal-head" },
          h("strong", { id: "t-modal-title", translate: own ? "no" : null }, title),
          h("button", { class: "t-ghost", type: "button", "aria-label": "Close", onclick: close }, icon("close")),
        ),
        content,
      ),
    );
    (document.querySelector(".gradio-container .contain") || document.body).append(shade);
    document.addEventListener("keydown", keys, true);
    const first = shade.querySelector("input, button");
    if (first) first.focus();
    return close;
  };

  // For the attribute `translate`, where there may stand a name or value of the user's, or one of these words of ours.
  const WORDS = /^(Base model|before|step \d+|Demo pictures \(\d+\)|on|off|automatic|nothing|[\d,]+ entr(y|ies))$|, step \d+$/;
  const named = (text) => (WORDS.test(text) ? null : "no");

  // Two pictures over each other with a slider between; the slider is a range input, so arrow keys move it.
  const wipe = (left, right) => {
    const pane = h(
      "div",
      { class: "t-wipe" },
      h("img", { src: left.src, alt: left.label, translate: named(left.label), draggable: "false" }),
      h("img", { src: right.src, alt: right.label, translate: named(right.label), class: "t-over", draggable: "false" }),
      h("span", { class: "t-wipe-line" }),
      h("span", { class: "t-wipe-l", translate: named(left.label) }, left.label),
      h("span", { class: "t-wipe-r", translate: named(right.label) }, right.label),
    );
    const range = h("input", {
      type: "range",
      min: 0,
      max: 100,
      step: 1,
      value: 50,
      "aria-label": `Wipe between ${left.label} and ${right.label}`,
    });
    const move = () => pane.style.setProperty("--p", range.value + "%");
    range.addEventListener("input", move);
    const drag = (e) => {
      if (e.buttons !== 1) return;
      const box = pane.getBoundingClientRect();
      range.value = Math.round(((e.clientX - box.left) / box.width) * 100);
      move();
    };
    pane.addEventListener("pointerdown", drag);
    pane.addEventListener("pointermove", drag);
    move();
    return h("div", { class: "t-wipe-box" }, pane, range);
  };

  // A notice stays until a newer one comes: a view that was made before it may arrive after it.
  const newest = () => {
    let last = { at: -1 };
    return (told) => (last = told && told.at >= last.at ? told : last);
  };

  // What a file is, by its name.
  const medium = (src) =>
    /\.(mp4|webm|mov)$/i.test(src) ? "video" : /\.(wav|mp3|flac|ogg)$/i.test(src) ? "sound" : "picture";

  Object.assign(window.Tuner, { newest, settle, keep, kept, medium, h, s, file, icon, slots, widget, go, url, marks, dark, look, setLook, modal, named, wipe });
})();
