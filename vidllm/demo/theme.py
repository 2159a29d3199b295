"""How the page looks: fonts that the reader's system has, colours for light and dark."""

from __future__ import annotations

from typing import Any

import gradio as gr

#: No font is fetched: a page in a closed network looks the same.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> Any:
    """Gradio's theme of the page."""
    return gr.themes.Default(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO
    )


CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
:root { --vl-span: #2563eb; --vl-span-other: #d97706; --vl-bar: #0d9488; --vl-good: #15803d;
  --vl-bad: #b91c1c; --vl-bad-paper: #fef2f2; --vl-lane: #64748b1f; }
.dark { --vl-span: #60a5fa; --vl-span-other: #fbbf24; --vl-bar: #2dd4bf; --vl-good: #4ade80;
  --vl-bad: #fca5a5; --vl-bad-paper: #450a0a; --vl-lane: #94a3b826; }
.gradio-container .html-container { padding: 0 !important; }
.vl-timeline { display: block; overflow: visible; font-size: 11px; margin: 4px 0; }
.vl-word { fill: var(--body-text-color-subdued); }
.vl-lane { fill: var(--vl-lane); }
.vl-span { fill: var(--vl-span); opacity: .85; rx: 3px; }
.vl-span-1 { fill: var(--vl-span-other); }
.vl-bar, .vl-curve { fill: var(--vl-bar); }
.vl-tick { stroke: var(--body-text-color-subdued); stroke-width: 1; opacity: .7; }
.vl-axis { stroke: var(--border-color-primary); stroke-width: 1; }
.vl-strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 6px;
  max-height: 1040px; overflow-y: auto; }
.vl-strip figure { margin: 0; }
.vl-pic { position: relative; width: 100%; border-radius: 4px; overflow: hidden;
  background-color: var(--vl-lane); }
.vl-pic img { position: absolute; inset: 0; width: 100% !important; height: 100% !important;
  max-width: none; image-rendering: pixelated; margin: 0 !important; object-fit: fill; }
.vl-strip figcaption { font-size: 10px; text-align: center; margin: 0;
  color: var(--body-text-color-subdued); }
.vl-legend, .vl-line, .vl-hint { font-size: 13px; color: var(--body-text-color-subdued); }
.vl-legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 2px 0 6px; }
.vl-legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  border: 1px solid var(--border-color-primary); border-radius: 2px; vertical-align: -1px; }
.vl-kept { background: #f8fafc; } .vl-merged { background: #2563eb99; }
.vl-dropped { background: #0c0c10; }
.vl-problem { color: var(--vl-bad); background: var(--vl-bad-paper); padding: 8px 12px;
  border-left: 3px solid var(--vl-bad); border-radius: 4px; margin: 4px 0; }
.vl-stages { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; font-size: 12px; }
.vl-stages span { padding: 2px 8px; border-radius: 999px;
  border: 1px solid var(--border-color-primary); }
.vl-done { color: var(--body-text-color); background: var(--vl-lane); }
.vl-later { color: var(--body-text-color-subdued); opacity: .6; }
.vl-now { color: var(--vl-span); border-color: var(--vl-span) !important; font-weight: 600; }
.vl-meter { height: 6px; border-radius: 3px; background: var(--vl-lane); margin: 6px 0; }
.vl-meter i { display: block; height: 100%; border-radius: 3px; background: var(--vl-span); }
.vl-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); gap: 6px;
  margin: 0; }
.vl-tiles div { background: var(--vl-lane); border-radius: 8px; padding: 8px 10px; min-width: 0; }
.vl-tiles dt, .vl-tiles small { font-size: 11px; color: var(--body-text-color-subdued); margin: 0; }
.vl-tiles dd { font-size: 17px; font-weight: 600; margin: 0; white-space: nowrap; }
.vl-notes { font-size: 12px; color: var(--body-text-color-subdued); margin: 8px 0 0 18px; }
.vl-table, .vl-table tr { border: 0 !important; }
.vl-table { width: 100%; border-collapse: collapse; font-size: 13px; }
.vl-table th, .vl-table td { text-align: right; padding: 4px 8px; font-weight: 400;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.vl-table th:first-child, .vl-words th, .vl-words td { text-align: left; vertical-align: top; }
.vl-table thead th { color: var(--body-text-color-subdued); }
.vl-verdict { font-weight: 600; margin: 4px 0; }
.vl-yes { color: var(--vl-good); } .vl-no { color: var(--vl-bad); }
#problem:not(:has(p)), #sprite, #timeline:not(:has(svg)), #status:not(:has(*)),
#account:not(:has(dl)), #curve:not(:has(*)), #index:not(:has(*)) { display: none !important; }
/* Gradio hides tabs in a menu by the widths of an unseen copy of them. Without widths all stay, and
   what has no room goes to another line. */
#tabs .tab-container.visually-hidden button { width: 0; padding: 0; overflow: hidden; }
#tabs .tab-wrapper, #tabs [role=tablist] { height: auto; flex-wrap: wrap; overflow: visible; }
#tabs [role=tablist] button { height: var(--size-8); padding: 0 var(--size-3); }
.vl-answer .empty { min-height: 64px !important; }
.vl-answer .label, .vl-answer .category-label { display: none !important; }
.vl-answer .token.highlighted, .vl-answer .textspan.hl { background: none !important;
  color: var(--vl-span) !important; text-decoration: underline; cursor: pointer; padding: 0 1px; }
.vl-answer .token.highlighted .text { color: inherit !important; }
.vl-answer .token:not(.highlighted) { cursor: text; }
@media (max-width: 640px) {
  .vl-strip { grid-template-columns: repeat(auto-fill, minmax(60px, 1fr)); gap: 4px; }
  .vl-tiles { grid-template-columns: 1fr 1fr; }
}
"""
