"""A thousand tasks in the side panel: it shows a bounded number of them, and stays responsive. Measures no times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.frontend.test_panel import browser as browser
from tests.frontend.test_panel import lab as lab
from tests.frontend.test_panel import page as page
from tests.frontend.test_panel import publisher, task
from tests.frontend.test_panel import server as server
from tests.server.live_server import TOKEN
from tests.support.lab import Lab, http_url

TASKS, STEPS = 1_000, 9
NODES = 25  # maximum per row


def test_a_thousand_tasks_and_ten_thousand_events(lab: Lab, tmp_path: Path) -> None:
    lab.open()
    batch = publisher(lab.server, tmp_path)
    activity, status = lab.panel.get_by_role("tabpanel", name="Activity"), lab.page.locator(".rk-status")
    expect(activity).to_contain_text("Nothing runs.")
    for step in range(STEPS):
        for i in range(TASKS):
            batch.publish(task(f"t{i}", documents_done=step, documents_total=STEPS, chunks_done=step))
        assert batch.flush(60)  # so that no event is superseded while it waits
    assert hub(lab)["seq"] == STEPS * TASKS
    expect(status).to_have_text("ragkit: 1000 tasks")
    expect(activity.locator(".rk-task")).to_have_count(200)
    expect(activity).to_contain_text("and 800 more tasks")
    expect(activity.locator("[data-task=t999]")).to_contain_text(f"{STEPS - 1} of {STEPS} documents")
    assert nodes(lab) < (200 + 5) * NODES

    # The page responds.
    lab.show("Experiments")
    expect(lab.panel.get_by_role("tabpanel", name="Experiments")).to_be_visible()
    lab.show("Activity")
    expect(activity.locator(".rk-task")).to_have_count(200)

    # They end: the last hundred are kept, and half of those are shown. Visible bars stay for a while.
    for i in range(TASKS):
        batch.publish(task(f"t{i}", "done", documents_done=STEPS, documents_total=STEPS))
    batch.close(60)
    assert hub(lab)["seq"] == 10_000
    expect(status).to_have_text("ragkit: nothing runs")
    activity.get_by_text("100 finished tasks").click()
    expect(activity.locator(".rk-compact")).to_have_count(50)
    expect(activity.locator(".rk-task:visible")).to_have_count(50)
    expect(activity.locator(".rk-compact").first).to_contain_text("t999")
    assert nodes(lab) < (50 + 5) * NODES


def hub(lab: Lab) -> Any:
    """Return the status of the hub."""
    headers = {"Authorization": f"token {TOKEN}"}
    return lab.page.request.get(http_url(lab.server, "api/v1/status"), headers=headers).json()


def nodes(lab: Lab) -> int:
    return lab.panel.locator("*").count()
