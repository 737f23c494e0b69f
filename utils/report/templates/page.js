'use strict';

// --- pictures: a click opens one over the page, with its caption; arrow keys go on ---

const viewer = document.createElement('div');
viewer.className = 'viewer';
viewer.hidden = true;
viewer.setAttribute('role', 'dialog');
viewer.setAttribute('aria-label', 'picture');
const large = document.createElement('img');
const caption = document.createElement('p');
const back = document.createElement('button');
const forth = document.createElement('button');
back.textContent = '‹';
forth.textContent = '›';
back.setAttribute('aria-label', 'previous picture');
forth.setAttribute('aria-label', 'next picture');
viewer.append(large, caption, back, forth);
document.body.append(viewer);

let shown = [];
let position = 0;

function show(index) {
  position = (index + shown.length) % shown.length;
  const picture = shown[position];
  const example = picture.closest('.example');
  const title = example ? example.querySelector('h4').textContent.trim() : '';
  const own = picture.closest('figure').querySelector('figcaption').textContent.trim();
  large.src = picture.src;
  large.alt = picture.alt;
  caption.textContent = [own, title].filter(Boolean).join(' – ');
  viewer.hidden = false;
}

addEventListener('click', event => {
  if (event.target === back) show(position - 1);
  else if (event.target === forth) show(position + 1);
  else if (!viewer.hidden) viewer.hidden = true;
  else if (event.target.matches('figure img') && !event.target.closest('a')) {
    // Those in folded parts of the page are left out.
    shown = [...document.querySelectorAll('main figure img')].filter(one => one.offsetParent);
    show(shown.indexOf(event.target));
  }
});
addEventListener('keydown', event => {
  if (viewer.hidden) return;
  if (event.key === 'ArrowLeft') show(position - 1);
  else if (event.key === 'ArrowRight') show(position + 1);
  else if (event.key === 'Escape') viewer.hidden = true;
  else return;
  event.preventDefault();
});

// --- tables: a click on a heading sorts by its column ---

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, '').replace('−', '-'));
  return Number.isNaN(number) ? text : number;
}

function sort(heading, column) {
  const table = heading.closest('table');
  const body = table.tBodies[0];
  const rises = heading.getAttribute('aria-sort') === 'descending';
  for (const other of heading.parentNode.cells) other.removeAttribute('aria-sort');
  heading.setAttribute('aria-sort', rises ? 'ascending' : 'descending');
  const rows = [...body.rows].map(row => [valueOf(row, column), row]);
  // A dash, which stands for no number, comes last either way.
  const isText = rows.every(([value]) => typeof value === 'string');
  rows.sort(([one], [other]) => {
    if (isText) return (rises ? -1 : 1) * one.localeCompare(other);
    if (typeof one === 'string' || typeof other === 'string') {
      return (typeof one === 'string') - (typeof other === 'string');
    }
    return rises ? one - other : other - one;
  });
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll('table.sortable')) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    heading.tabIndex = 0;
    heading.setAttribute('role', 'button');
    heading.addEventListener('click', () => sort(heading, column));
    heading.addEventListener('keydown', event => {
      if (event.key === 'Enter') sort(heading, column);
    });
  });
}
