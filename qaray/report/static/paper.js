// Highlights the evidence sentences of the clicked pair, more strongly for a higher cosine.
const evidence = JSON.parse(document.getElementById("evidence").textContent);
const sentences = [...document.querySelectorAll(".text span")], pairs = [...document.querySelectorAll("button.pair")];
const text = document.querySelector(".text");
const show = number => {
  for (const sentence of sentences) sentence.className = "";
  pairs.forEach((pair, place) => pair.setAttribute("aria-pressed", place === number));
  if (number === null) return;
  const best = evidence[number];
  for (const [place, score] of best) {
    sentences[place].className = "hit";
    sentences[place].title = `cosine ${score.toFixed(3)}`;
    sentences[place].style.setProperty("--strength", Math.max(0.15, Math.min(1, score)));
  }
  if (best.length) {
    const first = sentences[best[0][0]];
    first.classList.add("best");
    text.scrollTop += first.getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 3;
  }
};
pairs.forEach((pair, place) => pair.addEventListener("click", () =>
  show(pair.getAttribute("aria-pressed") === "true" ? null : place)));
