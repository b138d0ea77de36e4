// Sorts the table of papers by the clicked heading, and shows the rows that contain all words of the filter.
const table = document.getElementById("papers"), body = table.tBodies[0], shown = document.getElementById("shown");
const filter = document.getElementById("filter"), all = [...body.rows];
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
table.tHead.addEventListener("click", event => {
  const heading = event.target.closest("th");
  if (!heading || !event.target.closest("button")) return;
  const down = heading.getAttribute("aria-sort") === "ascending", column = heading.cellIndex;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numeric = heading.classList.contains("n"), sign = down ? -1 : 1;
  all.sort((a, b) => {
    const x = value(a, column), y = value(b, column);
    if (x === "" || y === "") return (x === "") - (y === "");  // papers without the score come last
    return sign * (numeric ? x - y : x.localeCompare(y));
  });
  body.append(...all);
});
const apply = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of all) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    count += !row.hidden;
  }
  shown.textContent = `${count} of ${all.length} shown`;
};
filter.addEventListener("input", apply);
apply();
