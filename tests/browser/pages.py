"""Prefect's pages as a person uses them: fill a form by its labels, press buttons, wait for what is shown.

In: a Playwright page and labels. Out: what a press led to.
"""

import re
from contextlib import suppress

from playwright.sync_api import TimeoutError as TooLate


def field(within, label: str):
    """The box of the form's field that bears this label, the outermost of that name."""
    text = re.compile(rf"^{re.escape(label)}( \(Optional\))?$")
    head = within.locator(".schema-form-property__label").filter(has_text=text).first
    return head.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' schema-form-property ')][1]")


def fill(page, path: str, value: object) -> None:
    """Set a field, named by the labels on the way to it: `recipe > Pretrain > Steps`."""
    box = page.locator("form").first
    for label in path.split(" > "):
        box = field(box, label)
    box.locator("input, textarea").first.fill(str(value))


def submit(page) -> str:
    """Press Submit and open the run that it made; returns its id."""
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile(r"tab=Runs"))
    made = page.locator("a[href*='/runs/flow-run/']").first
    for _ in range(6):  # the list may have been asked for before the run was in it, and asks again only much later
        page.reload()
        with suppress(TooLate):
            made.wait_for(timeout=5000)
            break
    made.click()
    page.wait_for_url(re.compile(r"/runs/flow-run/"))
    return re.search(r"flow-run/([0-9a-f-]{36})", page.url)[1]
