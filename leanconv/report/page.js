"use strict";
(() => {
  const root = document.documentElement, find = (selector) => document.querySelector(selector);
  const each = (selector, act) => document.querySelectorAll(selector).forEach(act);

  // Theme: the system's until the reader chooses. A file:// page may have no storage: then the choice lasts as long as the page.
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("leanconv-theme", value);
      return localStorage.getItem("leanconv-theme");
    } catch { return null; }
  };
  const wanted = new URLSearchParams(location.search).get("theme") || stored();
  if (wanted === "light" || wanted === "dark") root.dataset.theme = wanted;
  find("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored(root.dataset.theme);
  });

  // A run under the pointer (legend, table row) stands out in every plot.
  const focus = (run) => {
    each(".plot .focused", (line) => line.classList.remove("focused"));
    if (run === null) { delete document.body.dataset.focus; return; }
    document.body.dataset.focus = run;
    each(`.plot .run-${run}`, (line) => line.classList.add("focused"));
  };
  each("[data-run]", (element) => {
    element.addEventListener("pointerenter", () => focus(element.dataset.run));
    element.addEventListener("pointerleave", () => focus(null));
  });

  // Marks of the plots tell their numbers under the pointer, and under a finger.
  const tip = find("#tip");
  const words = (mark) => mark.dataset.tip ?? document.getElementById(mark.getAttribute("popovertarget")).textContent;
  const show = (event) => {
    const mark = event.target.closest("[data-tip], .note");
    const open = mark?.matches(".note") && document.getElementById(mark.getAttribute("popovertarget")).matches(":popover-open");
    tip.hidden = !mark || open || (mark.matches(".note") && event.pointerType === "touch");
    if (tip.hidden) return;
    tip.textContent = words(mark);
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
    const above = event.clientY - tip.offsetHeight - 10;
    tip.style.top = `${above < 8 ? event.clientY + 18 : above}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);

  // A note opens beside its question mark, by a click, a tap or the keyboard. Without this it opens in the middle.
  each(".note", (button) => {
    const note = document.getElementById(button.getAttribute("popovertarget"));
    button.addEventListener("click", () => { note.anchor = button; tip.hidden = true; });
    note.addEventListener("toggle", (event) => {
      if (event.newState !== "open" || !note.anchor) return;
      const at = note.anchor.getBoundingClientRect();
      note.style.left = `${Math.max(8, Math.min(at.left, innerWidth - note.offsetWidth - 8))}px`;
      const below = at.bottom + 6;
      note.style.top = `${below + note.offsetHeight > innerHeight ? Math.max(8, at.top - note.offsetHeight - 6) : below}px`;
    });
  });

  find("#opacity")?.addEventListener("input", (event) => root.style.setProperty("--overlay", event.target.value / 100));
  find("#grey")?.addEventListener("change", (event) => document.body.classList.toggle("grey", event.target.checked));
  find("#order")?.addEventListener("change", (event) => {
    const key = event.target.value, list = find("#cases"), sign = key === "spread" ? -1 : 1;
    const rank = (item) => sign * Number(item.getAttribute(`data-${key}`) ?? Infinity);  // place, spread, run-0, ...
    [...list.children].sort((a, b) => rank(a) - rank(b)).forEach((item) => list.append(item));
  });

  const zoom = find("#zoom");
  each(".tile", (tile) => tile.addEventListener("click", () => {
    const shown = tile.querySelector("img"), big = zoom.querySelector(".big");
    for (const name of ["--photo", "--ratio"]) {
      zoom.style.setProperty(name, tile.closest(".case").style.getPropertyValue(name));
    }
    big.classList.toggle("marked", tile.classList.contains("marked"));
    big.replaceChildren(shown.cloneNode());
    zoom.querySelector("p").textContent = shown.alt;
    zoom.showModal();
  }));
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
})();
