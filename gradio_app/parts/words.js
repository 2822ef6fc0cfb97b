// The interface in the reader's language. Widgets draw plain English; what is drawn is translated here, from the
// catalogues that Gradio puts into the page (gr.I18n). Whatever carries translate="no" (captions, names, prompts, logs)
// is never touched. How a catalogue is written stands in gradio_app/words/__init__.py.
(() => {
  const { h, icon } = Tuner;
  const STORE = "tuner-language";
  const NAMES = { "": "System default", en: "English", "zh-CN": "中文", "pt-BR": "Português" };
  const ATTRIBUTES = ["aria-label", "title", "placeholder", "alt"];
  const CLOSED = new Set(["SCRIPT", "STYLE", "TEXTAREA", "CODE"]);
  const LONGEST = 2000,
    MOST = 5000;

  // -- from English into a language ------------------------------------------------------------------------------------
  const plain = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const HOLE = /\{(\*?\w+)\}/;
  const BORDER = /(?<=[.!?…:]) +/,
    STOP = /(?<=[.!?…]) +/;
  const NUMBER = "(-?\\d[\\d.,e+-]*)";
  const pattern = (source, target) => {
    const bits = source.split(HOLE), // text, name, text, name, ..., text
      names = bits.filter((_, i) => i % 2);
    const body = bits.map((bit, i) => (i % 2 ? (bit.length === 1 ? NUMBER : "([\\s\\S]+?)") : plain(bit)));
    return { begins: bits[0], length: source.length, names, target, seek: new RegExp(`^${body.join("")}$`) };
  };
  const dictionary = (entries) => {
    const exact = new Map(),
      patterns = new Map(), // by their first two letters; those that begin with a value under ""
      memory = new Map();
    const opening = (text) => (text.length < 2 ? "" : text.slice(0, 2));
    for (const [source, target] of Object.entries(entries)) {
      exact.set(source, target);
      if (!HOLE.test(source)) continue;
      const one = pattern(source, target);
      patterns.set(opening(one.begins), [...(patterns.get(opening(one.begins)) || []), one]);
    }
    for (const list of patterns.values()) list.sort((a, b) => b.length - a.length);
    const filled = (text) => {
      for (const one of [...(patterns.get(opening(text)) || []), ...(patterns.get("") || [])]) {
        const found = one.seek.exec(text);
        if (!found) continue;
        const values = Object.fromEntries(one.names.map((name, i) => [name, name[0] === "*" ? say(found[i + 1], true) : found[i + 1]]));
        return one.target.replace(/\{(\*?\w+)\}/g, (_, name) => values[name]);
      }
      return undefined;
    };
    // Sentences that are all known by themselves: else a pattern's value could reach over their borders.
    const sentences = (text) => {
      const parts = text.split(STOP),
        said = parts.length > 1 ? parts.map((part) => say(part)) : [];
      return parts.length > 1 && said.every((part, i) => part !== parts[i]) ? tied(said) : undefined;
    };
    const tied = (said, glue = " ") => said.join(glue).replace(/([。？！：]) /g, "$1");
    // Several texts in one: facts in a row, sentences; in a value, which is ours, also a list, when all of it is known.
    const joined = (text, inner) => {
      for (const [joint, glue] of [[" · ", " · "], [BORDER, " "], [", "], [" and "]]) {
        const list = glue === undefined;
        if (list && !inner) continue;
        const parts = text.split(joint);
        if (parts.length < 2) continue;
        const said = parts.map((part) => say(part, inner));
        const changed = said.filter((part, i) => part !== parts[i] || !/[A-Za-z]/.test(part)).length;
        if (!changed || (list && changed < parts.length)) continue;
        return tied(said, list ? (exact.get(joint) ?? joint) : glue);
      }
      return undefined;
    };
    const say = (text, inner) => {
      const key = (inner ? "*" : " ") + text;
      if (memory.has(key)) return memory.get(key);
      if (memory.size > MOST) memory.clear();
      const said = exact.get(text) ?? sentences(text) ?? filled(text) ?? joined(text, inner) ?? text;
      memory.set(key, said);
      return said;
    };
    return (text) => {
      if (text.length > LONGEST || !/[A-Za-z]/.test(text)) return text;
      const [, before, inner, after] = /^(\s*)([\s\S]*?)(\s*)$/.exec(text);
      return before + say(inner) + after;
    };
  };

  // -- onto the page ---------------------------------------------------------------------------------------------------
  let translate = (text) => text;
  const texts = new WeakMap(), // text node -> what it said in English, and what it says now
    attributes = new WeakMap(); // element -> the same by attribute
  const again = (now, was) => {
    const source = was && now === was.said ? was.source : now;
    return { source, said: translate(source) };
  };
  const text = (node) => {
    const was = texts.get(node),
      is = again(node.data, was);
    if (was || is.said !== is.source) texts.set(node, is);
    if (node.data !== is.said) node.data = is.said;
  };
  const attribute = (node, name) => {
    const now = node.getAttribute(name);
    if (!now) return;
    const known = attributes.get(node) || {},
      is = again(now, known[name]);
    if (known[name] || is.said !== is.source) attributes.set(node, { ...known, [name]: is });
    if (now !== is.said) node.setAttribute(name, is.said);
  };
  const kept = (node) => node.getAttribute("translate") === "no";
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return text(node);
    if (node.nodeType !== Node.ELEMENT_NODE || kept(node)) return;
    for (const name of ATTRIBUTES) attribute(node, name);
    if (CLOSED.has(node.tagName.toUpperCase())) return;
    for (let child = node.firstChild; child; child = child.nextSibling) walk(child);
  };
  const open = (node) => {
    const at = node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement;
    return at && at.isConnected && !at.closest('[translate="no"], script, style, textarea, code');
  };
  const spent = { times: 0, ms: 0 }; // for whoever asks what it costs
  const changed = (records) => {
    const from = performance.now();
    for (const r of records) {
      if (r.type === "attributes") !kept(r.target) && open(r.target.parentElement || r.target) && attribute(r.target, r.attributeName);
      else if (r.type === "characterData") open(r.target) && text(r.target);
      else if (open(r.target)) r.addedNodes.forEach((node) => node.isConnected && walk(node));
    }
    observer.takeRecords(); // our own changes
    spent.times += 1;
    spent.ms += performance.now() - from;
  };
  const observer = new MutationObserver(changed);

  // -- which language --------------------------------------------------------------------------------------------------
  const chosen = () => {
    try {
      const kept = localStorage.getItem(STORE);
      return kept in NAMES ? kept : "";
    } catch (error) {
      return ""; // private mode
    }
  };
  const ours = (tag) => Object.keys(NAMES).find((name) => name && name.slice(0, 2) === tag.slice(0, 2).toLowerCase());
  const system = () => navigator.languages.map(ours).find(Boolean) || "en";
  const set = (language) => {
    const known = ((window.gradio_config || {}).i18n_translations || {})[language];
    document.documentElement.lang = known ? language : "en";
    translate = known && language !== "en" ? dictionary(known) : (text) => text;
    observer.disconnect();
    walk(document.body);
    if (language !== "en")
      observer.observe(document.body, {
        subtree: true,
        childList: true,
        characterData: true,
        attributes: true,
        attributeFilter: ATTRIBUTES,
      });
  };
  const choose = (language) => {
    try {
      language ? localStorage.setItem(STORE, language) : localStorage.removeItem(STORE);
    } catch (error) {
      /* private mode: not kept */
    }
    set(language || system());
    for (const one of document.querySelectorAll(".t-language select")) one.value = language; // chosen on System
  };
  // The switch in the header: a globe with the browser's own menu over it.
  const control = () => {
    const select = h(
      "select",
      { "aria-label": "Language", title: "Language", onchange: () => choose(select.value) },
      Object.entries(NAMES).map(([key, name]) => h("option", { value: key, translate: key ? "no" : null, lang: key || null }, name)),
    );
    select.value = chosen();
    return h("span", { class: "t-ghost t-language" }, icon("globe"), select);
  };
  const begin = () => set(chosen() || system());
  document.body ? begin() : document.addEventListener("DOMContentLoaded", begin);
  window.addEventListener("languagechange", () => chosen() || set(system()));

  Tuner.words = { control, choose, chosen, all: Object.entries(NAMES), spent, say: (text) => translate(text) };
})();
