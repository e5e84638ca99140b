"""Run by an interpreter that has playwright: loads workflows in the host's page as a user does.

    python page.py URL FOLDER_OF_PICTURES CHECKPOINT vue|canvas WORKFLOW...     print one JSON object on the last line

For each workflow: the node types that the page lacks, dialogs that came up, and how pressing Run ended. At last the help page of each
of the pack's nodes, and what the page's own help panel shows.
"""
import json
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PATIENCE = 600_000            # milliseconds: what a busy machine may take for anything
READY = """() => !!(window.app && window.app.graph && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).length > 50)"""
MISSING = """() => window.app.graph.nodes
    .filter(n => !(n.type in window.LiteGraph.registered_node_types) && !n.isVirtualNode).map(n => n.type)"""
DIALOGS = """() => [...document.querySelectorAll(
        "[role=dialog], [role=alertdialog], .comfy-modal, .p-toast-message-error, .comfyui-error-report")]
    .filter(e => e.offsetParent !== null && e.innerText.trim()).map(e => e.innerText.trim().slice(0, 300))"""
FIT = """() => { const c = window.app.canvas; let a = 1e9, b = 1e9, x = -1e9, y = -1e9;
    for (const n of [...window.app.graph.nodes, ...(window.app.graph._groups || [])]) {
        a = Math.min(a, n.pos[0]); b = Math.min(b, n.pos[1] - 40);
        x = Math.max(x, n.pos[0] + n.size[0]); y = Math.max(y, n.pos[1] + n.size[1]); }
    const left = 70, top = 95, w = c.canvas.clientWidth - left - 20, h = c.canvas.clientHeight - top - 20;    // beside the page's bars
    const s = Math.min(w / (x - a), h / (y - b), 1.2);
    c.ds.scale = s; c.ds.offset[0] = -a + (left + (w - s * (x - a)) / 2) / s; c.ds.offset[1] = -b + (top + (h - s * (y - b)) / 2) / s;
    c.setDirty(true, true); }"""
SETTINGS = """async vue => { for (const [k, v] of [['Comfy.TutorialCompleted', true], ['Comfy.VueNodes.Enabled', vue]])
    try { await window.app.extensionManager.setting.set(k, v); } catch (e) {} }"""
HIDE_MAP = "async () => { try { await window.app.extensionManager.setting.set('Comfy.Minimap.Visible', false); } catch (e) {} }"
LISTEN = """() => { window.__ended = []; for (const t of ['execution_success', 'execution_error', 'execution_interrupted'])
    window.app.api.addEventListener(t, e => window.__ended.push([t, (e.detail || {}).exception_message || ''])); }"""
RUN = """async ([checkpoint, steps]) => { window.__ended.length = 0;
    for (const n of window.app.graph.nodes) for (const w of n.widgets || []) {
        if (checkpoint && w.name === 'checkpoint') w.value = checkpoint;
        if (w.name === 'steps') w.value = Math.min(w.value, steps); }
    await window.app.queuePrompt(0); return window.app.lastNodeErrors || null; }"""
QUEUED = """async () => { if (window.__ended.length) return true; const q = await (await fetch('/queue')).json();
    return q.queue_running.length + q.queue_pending.length > 0; }"""
WIDGETS = """() => Object.fromEntries(window.app.graph.nodes.filter(n => n.type.startsWith('VDD'))
    .map(n => [n.id, (n.widgets || []).map(w => [w.name, w.value])]))"""
FRESH = """() => window.LiteGraph.createNode('VDDDeblurVideo').widgets.map(w => [w.name, w.value])"""
HELP_WORDS = "Where files go"         # a heading of VDDLoadCheckpoint.md
HELP = """async t => { const d = (await (await fetch('/object_info/' + t)).json())[t], m = d.python_module.split('.').slice(1).join('.');
    const r = await fetch('/extensions/' + m + '/docs/' + t + '.md'); return [r.status, (await r.text()).slice(0, 60)]; }"""


def main(url: str, pictures: str, checkpoint: str, drawn: str, paths: list[str]) -> None:
    result: dict = {"workflows": {}, "help": {}, "page_errors": [], "drawn": drawn}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
                                    args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1500, "height": 760}, locale="en-US")
        result["shown"] = ""
        page.on("pageerror", lambda e: result["page_errors"].append(f"{result['shown']}: {e} {e.stack or ''}"[:600]))
        page.goto(url, wait_until="domcontentloaded", timeout=PATIENCE)
        page.wait_for_function(READY, timeout=PATIENCE)
        page.evaluate(SETTINGS, drawn == "vue")
        page.reload(wait_until="domcontentloaded", timeout=PATIENCE)
        page.wait_for_function(READY, timeout=PATIENCE)
        page.wait_for_timeout(2000)
        for _ in range(3):
            page.keyboard.press("Escape")
        result["frontend"] = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__ || ''")
        page.evaluate(LISTEN)
        for path in paths:
            result["shown"] = Path(path).stem
            page.evaluate(HIDE_MAP)
            page.evaluate("async d => { await window.app.loadGraphData(d) }", json.loads(Path(path).read_text()))
            page.wait_for_timeout(1500)
            found = {"missing": page.evaluate(MISSING), "dialogs": page.evaluate(DIALOGS), "widgets": page.evaluate(WIDGETS)}
            if not found["missing"]:
                found["node_errors"] = page.evaluate(RUN, [checkpoint, 2])
                refused = page.evaluate(DIALOGS) if not page.evaluate(QUEUED) else []
                if refused or found["node_errors"]:
                    found["dialogs"] += refused
                else:
                    page.wait_for_function("() => window.__ended.length", timeout=PATIENCE)
                found["ended"] = page.evaluate("() => window.__ended[0] || null")
                page.wait_for_timeout(5000 if pictures else 500)
                page.evaluate(FIT)
                page.wait_for_timeout(700)
                if pictures:
                    page.screenshot(path=str(Path(pictures) / (Path(path).stem + ".png")))
            found["drawn_by_vue"] = page.evaluate("() => document.querySelectorAll('[data-node-id]').length")
            close_dialogs(page)
            result["workflows"][Path(path).stem] = found
        result["fresh"] = page.evaluate(FRESH)
        ours = page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types).filter(t => t.startsWith('VDD'))")
        result["help"] = {t: page.evaluate(HELP, t) for t in ours}
        result["help_panel"] = help_panel(page)
        if pictures:
            page.screenshot(path=str(Path(pictures) / "help.png"))
        browser.close()
    print("\n" + json.dumps(result))


def close_dialogs(page) -> None:
    """As a user does: older pages leave a dialog open when Escape is pressed outside of it."""
    for _ in range(2):
        page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    for button in page.locator(".p-dialog-close-button, .p-dialog-header-close, [role=dialog] button[aria-label=Close]").all():
        if button.is_visible():
            button.click(timeout=60_000)
            page.wait_for_timeout(300)


def help_panel(page) -> str:
    """"shown" when the help panel of a node, opened through the node's own menu button, shows our page."""
    try:
        page.evaluate("""() => { const n = window.app.graph.nodes.find(n => n.type === 'VDDLoadCheckpoint');
            window.app.canvas.selectNode(n); window.app.canvas.setDirty(true, true); }""")
        page.wait_for_timeout(800)
        for button in ("[data-testid=info-button]", ".selection-toolbox button:has([class*=info])",
                       ".selection-toolbox button:nth-of-type(2)", "button:has(.pi-question-circle)"):
            if page.locator(button).count():
                page.locator(button).first.click(timeout=60_000)
                break
        page.get_by_text(HELP_WORDS).first.wait_for(timeout=PATIENCE)
        return "shown"
    except Exception as error:
        return f"not opened: {error}"[:300]


if __name__ == "__main__":
    main(*sys.argv[1:5], sys.argv[5:])
