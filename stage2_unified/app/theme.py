"""Theme of the page: muted colours, radiographs on black, no external resources."""

import gradio as gr

# Gradio includes this font; a GoogleFont would be fetched from another server.
THEME = gr.themes.Default(
    primary_hue="sky",
    secondary_hue="sky",
    neutral_hue="slate",
    font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
)

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin: 0; font-size: 1.5rem; }
#title p { margin: 0; opacity: 0.75; }
#notice { border-left: 4px solid #d97706; border-radius: 6px; padding: 0.5rem 0.9rem; background: #fef3c7; }
#notice * { color: #451a03; font-size: 0.92rem; }
.dark #notice { background: #451a03; }
.dark #notice * { color: #fef3c7; }
.radiograph .image-container, .radiograph .image-frame,
.radiograph .grid-wrap, .radiograph .thumbnail-item { background: #0b0f14; }
.radiograph .image-frame img { width: 100% !important; height: 100% !important; object-fit: contain; }
#grid img { image-rendering: pixelated; cursor: crosshair; }
#neighbours, #examples { border: none; }
#found, #found table, #found .cell-wrap, #found th, #prompted, #prompted table, #prompted .cell-wrap, #prompted th { font-size: 0.85rem; font-family: var(--font); }
#findings .confidence-set { font-family: var(--font); }
#report textarea { font-size: 1.02rem; line-height: 1.5; }
#status { min-height: 1.5rem; color: var(--primary-600); }
/* One toast collects the errors; only the newest is shown. */
.toast-messages > .toast-message-item:not(:last-child), .toast-count { display: none; }
/* Otherwise a wide table widens the page beyond a phone. Gradio scopes rules within @media to .contain. */
.gradio-container, .gradio-container > .main, .main > .wrap, main.contain, .contain .row > *, .contain .column > *,
.contain .gr-group > *, .contain .styler > * { min-width: 0 !important; }
#neighbours .grid-wrap { min-height: 0; }
"""
