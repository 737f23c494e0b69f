// A click shows a picture at the width of the window, the next click closes it.
addEventListener('click', event => {
  const open = document.querySelector('img.open');
  if (open) open.classList.remove('open');
  else if (event.target.matches('figure img')) event.target.classList.add('open');
});
