"""Looks at the dashboards in headless Chromium and keeps screenshots.

usage: look.py CHROMIUM SHOTS NAME=URL...
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS = [
    ("light", "light", WIDE),
    ("dark", "dark", WIDE),
    ("phone-light", "light", PHONE),
    ("phone-dark", "dark", PHONE),
]
# The page fetches itself every five seconds.
REFRESHED_MS = 15_000


def watch(page: Page, origin: str, faults: list[str]) -> None:
    """Collects whatever a browser complains about."""
    page.on("console", lambda m: faults.append(f"console: {m.type} {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script: {e}"))
    page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))

    def request(r):
        if not r.url.startswith(origin):
            faults.append(f"asks elsewhere: {r.url}")

    page.on("request", request)


def expect(is_so: bool, what: str, faults: list[str]) -> None:
    if not is_so:
        faults.append(what)


def complete(page: Page, name: str, faults: list[str]) -> None:
    titles = page.locator("h2").all_inner_texts()
    expect(len(titles) >= 6, f"{name}: sections {titles}", faults)
    expect(page.locator("svg.plot").count() >= 1, f"{name}: no plot", faults)
    expect(page.locator("table tbody tr").count() >= 3, f"{name}: empty tables", faults)
    width = page.evaluate("document.scrollingElement.scrollWidth")
    room = page.viewport_size["width"]
    expect(width <= room, f"{name}: {width} px wide on a screen of {room}", faults)


def contrast(page: Page, name: str, faults: list[str]) -> None:
    """Text against its background, as WCAG counts it: 4.5 to 1 at least."""
    worst = page.evaluate(
        """() => {
        const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
        const lum = ([r, g, b]) => [r, g, b].map((v) => {
          v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        }).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (el) => {
          for (; el; el = el.parentElement) {
            const c = parse(getComputedStyle(el).backgroundColor);
            if (c.length === 3 || c[3] > 0) return c;
          }
          return [255, 255, 255];
        };
        let worst = [21, ""];
        for (const el of document.querySelectorAll("h1,h2,h3,p,a,li,dt,dd,th,td,code,button,caption")) {
          if (!el.innerText || !el.offsetParent) continue;
          const [a, b] = [lum(parse(getComputedStyle(el).color)), lum(ground(el))];
          const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (ratio < worst[0]) worst = [ratio, el.tagName + " " + el.innerText.slice(0, 30)];
        }
        return worst;
      }"""
    )
    expect(worst[0] >= 4.5, f"{name}: contrast {worst[0]:.2f} at {worst[1]}", faults)


def by_keyboard(page: Page, name: str, faults: list[str]) -> None:
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.className")
    expect(first == "skip", f"{name}: the first stop is {first!r}", faults)
    page.keyboard.press("Enter")
    at = page.evaluate("document.activeElement.id")
    expect(at == "page", f"{name}: the skip link leads to {at!r}", faults)
    page.reload()
    stops = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        stops.add(
            page.evaluate(
                "(() => { const e = document.activeElement;"
                " return e.id || e.getAttribute('href') || e.getAttribute('aria-label') || e.tagName; })()"
            )
        )
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    regions = page.evaluate(
        "[...document.querySelectorAll('.wide')].filter(a => !a.closest('details:not([open])'))"
        ".map(a => a.getAttribute('aria-label'))"
    )
    for wanted in ["pause", *links, *regions]:
        expect(wanted in stops, f"{name}: {wanted!r} cannot be reached by keyboard", faults)
    page.locator("#pause").focus()
    page.keyboard.press("Enter")
    pressed = page.locator("#pause").get_attribute("aria-pressed")
    expect(pressed == "true", f"{name}: the pause button does nothing", faults)


def refreshes(page: Page, name: str, faults: list[str]) -> None:
    """New figures come by themselves, and what was opened stays open."""
    page.evaluate("document.querySelector('.facts').textContent = 'stale'")
    page.locator("details").first.evaluate("d => d.open = true")
    # The page's policy forbids the evaluation that waiting for a function uses.
    for _ in range(REFRESHED_MS // 100):
        if page.evaluate("document.querySelector('.facts').textContent") != "stale":
            break
        page.wait_for_timeout(100)
    else:
        faults.append(f"{name}: the page does not refresh itself")
    still = page.locator("details").first.evaluate("d => d.open")
    expect(still, f"{name}: a refresh closes what was open", faults)


def main() -> int:
    chromium, shots = sys.argv[1], Path(sys.argv[2])
    shots.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for pair in sys.argv[3:]:
            role, url = pair.split("=", 1)
            for view, scheme, size in VIEWS:
                name = f"{role}-{view}"
                context = browser.new_context(color_scheme=scheme, viewport=size)
                page = context.new_page()
                watch(page, url, faults)
                page.goto(url + "/", wait_until="networkidle")
                complete(page, name, faults)
                contrast(page, name, faults)
                page.screenshot(path=shots / f"{name}.png", full_page=True)
                context.close()
            context = browser.new_context(viewport=WIDE)
            page = context.new_page()
            watch(page, url, faults)
            page.goto(url + "/", wait_until="networkidle")
            refreshes(page, role, faults)
            by_keyboard(page, role, faults)
            context.close()
            context = browser.new_context(java_script_enabled=False, viewport=WIDE)
            page = context.new_page()
            page.goto(url + "/")
            expect(page.locator("h2").count() >= 6, f"{role}: empty without a script", faults)
            hidden = page.locator("#pause").is_hidden()
            expect(hidden, f"{role}: a button that does nothing without a script", faults)
            context.close()
            print(f"{role}: looked at {url}")
        browser.close()
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(list(shots.glob('*.png')))} screenshots in {shots}, {len(faults)} faults")
    return 1 if faults else 0


sys.exit(main())
