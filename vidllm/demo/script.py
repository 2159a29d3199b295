"""What the browser does by itself: go to a time, take an example, take a file that is dropped."""

from __future__ import annotations

#: Run once when the page is there. Events are caught at the top, as what they come from is drawn
#: anew with every answer.
SCRIPT = """
() => {
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const find = (place) => document.querySelector(place);
  const goTo = (seconds) => {
    const video = find('#video video');
    if (!video) return;
    video.pause();
    video.currentTime = seconds;
    find('#video').scrollIntoView({block: 'nearest', behavior: calm ? 'auto' : 'smooth'});
  };
  document.addEventListener('click', (event) => {
    const time = event.target.closest('.vl-time'), example = event.target.closest('.vl-example');
    if (time) goTo(Number(time.dataset.seconds));
    if (example) {
      const box = find('#question textarea, #question input');
      box.value = example.textContent;
      box.dispatchEvent(new Event('input', {bubbles: true}));
      box.focus();
    }
  });
  // Enter behind a whole name means that name, and not the first line of the menu that has it.
  document.addEventListener('keydown', (event) => {
    const box = event.target.closest('#compressor input, #recipe input');
    if (!box) return;
    if (event.key.startsWith('Arrow')) box.dataset.walked = 'yes';
    else if (event.key !== 'Enter') delete box.dataset.walked;
    else if (!box.dataset.walked && document.querySelectorAll('[role=option]').length) {
      const names = [...document.querySelectorAll('[role=option]')].map(
        (line) => line.textContent.match(/([\\w-]+): /)?.[1]);
      if (!names.includes(box.value.trim())) return;
      event.stopPropagation();
      box.blur();
    }
  }, true);
  document.addEventListener('dragover', (event) => event.preventDefault());
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    const field = find('input[type=file]');
    if (!field || !event.dataTransfer.files.length) return;
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event('change', {bubbles: true}));
  });
  // The clip that the page opens with plays, without sound; what a visitor chooses waits.
  const begin = (video) => {
    if (video.dataset.vlOpened || calm) return;
    video.dataset.vlOpened = 'yes';
    video.muted = true;
    video.play().catch(() => {});
  };
  let opened = false;
  document.addEventListener('loadeddata', (event) => {
    if (opened || !event.target.closest('#video')) return;
    opened = true;
    begin(event.target);
  }, true);
  const there = find('#video video');
  if (there && there.readyState > 1) { opened = true; begin(there); }
  // The newest answer is in sight.
  new MutationObserver(() => {
    const box = find('#answer .vl-scroll');
    if (box) box.scrollTop = box.scrollHeight;
  }).observe(find('#answer'), {childList: true, subtree: true, characterData: true});
  // Code that scrolls can be reached by keyboard.
  new MutationObserver(() => {
    for (const box of document.querySelectorAll('.cm-scroller')) box.tabIndex = 0;
  }).observe(document.body, {childList: true, subtree: true});
}
"""
#: What was uploaded goes to the player: the server hears of it by the player's own event.
TO_PLAYER = "(file) => file"
