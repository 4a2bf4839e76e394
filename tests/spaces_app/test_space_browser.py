"""The Space as a visitor meets it: a headless Chromium, the real backbone, and screenshots left in `tests/output/`."""

import os

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from hf_spectral import SpectralResult
from spaces_app import app
from tests.hub import local_hub
from tests.spaces_app import space_server
from tests.spaces_app.browser import OUTPUT, browser, chromium

pytestmark = pytest.mark.skipif(
    chromium() is None and not os.environ.get("CI"),
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)

_TOP = "return Math.round(document.querySelector('#results').getBoundingClientRect().top)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The demo with its default backbone, which without a Hub is the offline DINOv2-small.

    The Hub that it sees holds nothing but a gated repository.
    """
    hub, folder = local_hub.Hub(), tmp_path_factory.mktemp("server")
    name = app.BACKBONES["DINOv3 small (gated)"]
    hub.repositories["model", name] = local_hub.Repository("model", name, private=False, sdk=None, gated=True)
    with local_hub.running(hub) as address, space_server.demo(folder, HF_ENDPOINT=address, HF_TOKEN="") as running:
        yield running


def test_upload_click_switch_download_on_a_desktop(server, tmp_path):
    Image.fromarray(load_sample_image("china.jpg")).resize((320, 214)).save(tmp_path / "china.png")
    with browser(1280, 900, tmp_path) as page:
        page.driver.get(server.url)
        page.new_pictures("#examples", 6)
        page.upload("#picture", tmp_path / "china.png")
        first = {name: page.new_pictures(f"#{name}-colors", 2) for name in ("where", "what")}
        for name in ("where", "what"):
            page.new_pictures(f"#{name}-segments", 3)
        assert "27 by 40 patches · 12 layers" in page.text("#status")
        page.screenshot(OUTPUT / "space-desktop.png")

        shown = page.new_pictures("#what-segments", 3)
        page.slide("#what-cut", 9)
        page.new_pictures("#what-segments", 10, known=shown[1:], seconds=20)  # The photo and nine masks.
        assert "27 by 40 patches" in page.text("#status")
        page.screenshot(OUTPUT / "space-desktop-nine-segments.png")

        page.tab("Eigenvectors")
        for name in ("where", "what"):
            page.new_pictures(f"#{name}-eigenvectors", 12)
            captions = page.text(f"#{name}-eigenvectors").splitlines()
            assert len(captions) == 12
            assert all("λ 0." in caption and "layout" in caption for caption in captions)

        page.tab("Ask a patch")
        page.new_pictures("#affinity-photo")
        assert page.pictures("#where-affinity") == []
        page.click("#affinity-photo img", 0.3, 0.4)
        lit = page.new_pictures("#where-affinity")
        page.new_pictures("#where-layers", 12)
        page.new_pictures("#what-layers", 12)
        page.screenshot(OUTPUT / "space-desktop-patch.png")

        # A click on each picture of the overview asks the same patch, wherever the handle is; a drag asks nothing.
        for number, picture in enumerate(("where-colors", "what-segments", "what-colors", "where-segments")):
            page.tab("Overview")
            page.click(f"#{picture} img", 0.8, 0.2 + 0.2 * number)
            other = page.new_pictures("#where-affinity", known=lit)
            page.tab("Overview")
            page.click(f"#{picture} img", 0.3, 0.4)
            assert page.new_pictures("#where-affinity", known=other) == lit
        page.tab("Overview")
        page.drag("#what-colors .inner", 60)
        assert page.pictures("#what-colors")
        page.tab("Ask a patch")
        assert page.new_pictures("#where-affinity") == lit
        page.click("#affinity-photo img", 0.9, 0.1)
        page.new_pictures("#where-affinity", known=lit)

        page.tab("Overview")
        page.click("#pathway label:nth-of-type(3)")
        page.click("#go")
        page.until(lambda: not page.pictures("#where-colors"), "the where column hidden")
        # The same picture and pathway give the same file; it is still there, and the other is not.
        assert set(page.new_pictures("#what-colors", 2)) == set(first["what"])

        page.tab("Save")
        page.click("#what-result")
        file = page.until(lambda: [*tmp_path.glob("*.safetensors")], "the download")[0]
        result = SpectralResult.from_pretrained(file)
        assert result.eigenvectors.shape == (13, 27, 40)
        assert result.config.pathway == "what"
        assert 'pathway="what"' in page.text("#code")
        page.click("#settings button")
        page.choose("#model", "DINOv3 small (gated)")
        page.click("#go")
        page.until(
            lambda: "dinov3-vits16-pretrain-lvd1689m, which is gated. Ask for access" in page.text("body"), "why"
        )
        page.screenshot(OUTPUT / "space-desktop-gated.png")
        assert page.severe() == []

        (tmp_path / "text.png").write_text("no picture")
        page.driver.get(server.url)
        page.new_pictures("#examples", 6)
        page.upload("#picture", tmp_path / "text.png")
        sentence = "a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        page.until(lambda: sentence in page.text("body"), "a message")
        assert "Traceback" not in page.text("body")


def test_one_tap_on_a_phone(server, tmp_path):
    with browser(390, 844, tmp_path) as page:
        page.driver.get(server.url)
        page.new_pictures("#examples", 6)
        page.click("#examples .gallery-item:nth-child(2) button")
        for name in ("where", "what"):
            page.new_pictures(f"#{name}-colors", 2)
            page.new_pictures(f"#{name}-segments", 3)
        top = page.driver.execute_script(_TOP)
        assert top < 844, "the results are scrolled to"
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
        page.screenshot(OUTPUT / "space-phone.png")
        shown = page.new_pictures("#where-segments", 3)
        page.slide("#where-cut", len(shown) + 1)  # The photo and a mask per segment are shown: two segments more.
        page.new_pictures("#where-segments", len(shown) + 2, known=shown[1:], seconds=20)
        page.click("#what-segments img", 0.4, 0.4)
        page.new_pictures("#what-layers", 12)
        page.until(lambda: 0 <= page.driver.execute_script(_TOP) < 100, "the answer scrolled to")
        page.screenshot(OUTPUT / "space-phone-patch.png")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
        page.tab("Save")
        assert page.severe() == []
