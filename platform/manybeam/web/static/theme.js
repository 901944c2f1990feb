// Without a stored choice, use the light or dark mode of the system, before the page is drawn.
(function () {
  "use strict";
  const root = document.documentElement;
  if (/(?:^|; )manybeam-theme=(light|dark)/.test(document.cookie)) return;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => root.setAttribute("data-bs-theme", dark.matches ? "dark" : "light");
  dark.addEventListener("change", follow);
  follow();
})();
