"""What the README claims, and the command that shows each claim to be true or not."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

DATA = "{data}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        name: Of its file in `results/`.
        says: The claim.
        command: Words after `python -m tests.benchmarks.`; `{data}` stands for the folder of the pictures.
        part: Name of the benchmark's part, under which its JSON holds the rows.
        figures: What the run gave, in the words of Jinja: `row(...)` is the row whose first columns hold these values.
        chart: Column that the picture shows; None for a table without a picture.
        minutes: About how long it takes on two cores.
    """

    name: str
    says: str
    command: str
    part: str
    figures: str
    chart: str | None
    minutes: int

    def words(self, data: Path) -> list[str]:
        """Return the command after `python -m` as words, with the folder of the pictures put in."""
        return [word.replace(DATA, str(data)) for word in shlex.split(f"tests.benchmarks.{self.command}")]


IMAGE_QUALITY = (
    "covering {{ row('hf_spectral, what, all layers, weighted').covering }}; with equal weights "
    "{{ row('hf_spectral, what, all layers').covering }}, and from tokens alone "
    "{{ row('hf_spectral, what, all layers, tokens alone').covering }}; best of the layers 8, 10, 11 alone "
    "{{ best('covering', '8 alone', '10 alone', '11 alone') }}; ncut-pytorch "
    "{{ row('ncut-pytorch, last hidden state').covering }}, "
    "k-means {{ row('k-means, last hidden state').covering }}"
)
DATASET_QUALITY = (
    "NMI {{ row('hf_spectral, what, all layers').NMI }}; equal weights "
    "{{ row('hf_spectral, what, equal weights').NMI }}; best of the single layers tried "
    "{{ best('NMI', ' alone') }}; without the walk inside images "
    "{{ row('hf_spectral, what, all layers, no diffusion').NMI }}; with 64 eigenvectors for 128 "
    "{{ row('hf_spectral, what, all layers, 64 eigenvectors').NMI }}; ncut-pytorch "
    "{{ row('ncut-pytorch, last hidden state').NMI }}, k-means {{ row('k-means, last hidden state').NMI }}"
)

CLAIMS = (
    Claim(
        "image-quality",
        "All layers, weighted without labels, cut a photograph into what people see in it as well as the single layer "
        "that labels would choose, and better than clusters of the last hidden state do.",
        "single_image {data}/bsds500_val --parts quality --images 20 --threads 1 "
        "--methods 'what, all layers' ncut 'k-means, last' 'layer 8 ' 'layer 10' 'layer 11'",
        "quality",
        IMAGE_QUALITY,
        "covering",
        30,
    ),
    Claim(
        "image-quality-clip",
        "On the image tower of CLIP ViT-B/16, its weights rounded to 8 bits, all layers do as well as a single one, "
        "too, and better than the last hidden state.",
        "single_image {data}/bsds500_val --backbone clip --resolution 448 --parts quality --images 20 --threads 1 "
        "--methods 'what, all layers' ncut 'k-means, last' 'layer 8 ' 'layer 10' 'layer 11'",
        "quality",
        IMAGE_QUALITY,
        "covering",
        15,
    ),
    Claim(
        "image-protocol",
        "Segments along the picture's edges agree better with people's than segments of tokens alone.",
        "single_image {data}/bsds500_val --parts protocol --threads 1",
        "protocol",
        "covering with one scale for all pictures {{ row('tree')['covering ODS'] }} (tokens alone "
        "{{ row('ward')['covering ODS'] }}), with the best of each {{ row('tree')['covering OIS'] }} "
        "({{ row('ward')['covering OIS'] }}), automatic {{ row('tree')['covering, automatic'] }} "
        "({{ row('ward')['covering, automatic'] }}); F-measure of boundaries at 2 pixels "
        "{{ row('tree')['boundary F'] }} ({{ row('ward')['boundary F'] }}); {{ row('tree').images }} images",
        "covering OIS",
        30,
    ),
    Claim(
        "image-protocol-classes",
        "On pictures that nothing was chosen on, labeled by few large objects, segments of tokens alone do better.",
        "single_image {data}/msrc_dev --void 0 --images 60 --parts protocol --threads 1",
        "protocol",
        "covering with one scale for all pictures {{ row('tree')['covering ODS'] }} (tokens alone "
        "{{ row('ward')['covering ODS'] }}), with the best of each {{ row('tree')['covering OIS'] }} "
        "({{ row('ward')['covering OIS'] }}), automatic {{ row('tree')['covering, automatic'] }} "
        "({{ row('ward')['covering, automatic'] }}); {{ row('tree').images }} images",
        "covering OIS",
        15,
    ),
    Claim(
        "image-weights",
        "Weights of the layers of one image, found without labels, do not do worse than equal ones.",
        "layer_weights --bsds {data}/bsds500_val --image-resolution 476 --pathways what --rows equal auto --threads 1",
        "one image",
        "covering {{ row('what', 'auto').covering }} with automatic weights, {{ row('what', 'equal').covering }} with "
        "equal ones; number of segments found by itself {{ row('what', 'auto')['covering, number found'] }}, "
        "{{ row('what', 'equal')['covering, number found'] }}; {{ row('what', 'auto').images }} images",
        "covering",
        6,
    ),
    Claim(
        "image-cost",
        "Both pathways of an image cost less than one more forward pass of the backbone.",
        "single_image --parts speed --repeats 9 --threads 1",
        "speed",
        "{{ row('37 x 37')['after the forward / forward'] }} of it at 37 x 37 tokens, "
        "{{ row('68 x 46')['after the forward / forward'] }} at 68 x 46",
        "after the forward / forward",
        3,
    ),
    Claim(
        "image-memory",
        "They take little memory beside it.",
        "single_image --parts memory --threads 1",
        "memory",
        "{{ rows[0]['above the forward, MiB'] | round | int }} MiB above a forward pass of 68 x 46 tokens",
        "above the forward, MiB",
        1,
    ),
    Claim(
        "image-gradient",
        "The exact solver does better than the paper's 2,000 gradient steps, hundreds of times faster.",
        "single_image {data}/bsds500_val --parts gradient --threads 1",
        "gradient",
        "{{ spread('times slower than eigen', \"gradient, the paper's 2,000 steps\") }} times faster, Rayleigh "
        "quotient {{ spread('Rayleigh quotient', 'eigen') }} against "
        "{{ spread('Rayleigh quotient', \"gradient, the paper's 2,000 steps\") }}",
        "times slower than eigen",
        15,
    ),
    Claim(
        "dataset-exact",
        "The streamed basis of a dataset is the exact solution of the dense problem.",
        "dataset --coco {data}/coco100 --parts exact --threads 1",
        "exact",
        "eigenvalues off by at most {{ row('where')['largest error of an eigenvalue'] }} (where), "
        "{{ row('what')['largest error of an eigenvalue'] }} (what); angle of the subspaces "
        "{{ row('where')['largest angle of the subspace'] }}, {{ row('what')['largest angle of the subspace'] }}",
        "largest error of an eigenvalue",
        1,
    ),
    Claim(
        "dataset-quality",
        "Clusters of a whole dataset agree with its classes far better than those of the last hidden state do.",
        "dataset --msrc {data}/msrc_dev --parts quality --single-layers 6 8 9 11 --threads 1",
        "quality",
        DATASET_QUALITY,
        "NMI",
        20,
    ),
    Claim(
        "dataset-quality-clip",
        "On the image tower of CLIP ViT-B/16, its weights rounded to 8 bits, clusters of all layers agree with classes "
        "better than those of the last hidden state, too, though by less.",
        "dataset --msrc {data}/msrc_dev --backbone clip --resolution 448 --images 40 --parts quality "
        "--single-layers 8 11 --threads 1",
        "quality",
        DATASET_QUALITY,
        "NMI",
        15,
    ),
    Claim(
        "dataset-unseen",
        "A basis serves images that it was not fitted on.",
        "dataset --msrc {data}/msrc_dev --parts unseen --threads 1",
        "unseen",
        "NMI {{ row('unseen', 'both').NMI }} on the half that was not seen, {{ row('fitted', 'both').NMI }} on the one "
        "fitted, each half in turn; {{ row('unseen, clusters found anew', 'both').NMI }} with the same basis and "
        "clusters found anew in the half that was not seen",
        "NMI",
        12,
    ),
    Claim(
        "dataset-gradient",
        "`fit` does not do worse than the paper's own optimization of a dataset, and is much faster.",
        "dataset --msrc {data}/msrc_dev --parts gradient --gradient-images 40 --threads 1",
        "gradient",
        "{{ row(\"the paper's gradient mode\")['times slower'] | round | int }} times faster; NMI "
        "{{ row('hf_spectral, what, default').NMI }} against {{ row(\"the paper's gradient mode\").NMI }}",
        "NMI",
        10,
    ),
    Claim(
        "dataset-cost",
        "`fit` costs a few forward passes over the images.",
        "dataset --coco {data}/coco100 --parts speed --images 40 --repeats 1 --threads 1",
        "speed",
        "what {{ row('what')['/ forward'] }} of them, where {{ row('where')['/ forward'] }}; with degrees of a quarter "
        "of the images {{ row('what, degrees of a quarter')['/ forward'] }}, "
        "{{ row('where, degrees of a quarter')['/ forward'] }}, and no eigenvalue changes by more than "
        "{{ row('what, degrees of a quarter')['largest change of an eigenvalue'] }}, "
        "{{ row('where, degrees of a quarter')['largest change of an eigenvalue'] }}",
        "/ forward",
        4,
    ),
    Claim(
        "dataset-memory",
        "Its memory does not grow with the number of images.",
        "dataset --coco {data}/coco100 --parts memory --memory-images 50 100 400 --resolution 224 --threads 1",
        "memory",
        "400 images take {{ row('what', 400)['/ second'] }} (what), {{ row('where', 400)['/ second'] }} (where) of the "
        "memory of 100",
        "peak, MiB",
        10,
    ),
    Claim(
        "dataset-processes",
        "Two processes do it in half the time, with the same result.",
        "dataset --coco {data}/coco100 --parts processes --images 40 --repeats 1 --threads 1",
        "processes",
        "{{ row('what')['times faster'] }} times as fast (what), {{ row('where')['times faster'] }} (where); "
        "eigenvalues differ by {{ row('what')['largest difference of eigenvalues'] }}, "
        "{{ row('where')['largest difference of eigenvalues'] }}",
        "times faster",
        5,
    ),
    Claim(
        "layer-scores",
        "Where follows the layout of an image, what does not.",
        "dataset --coco {data}/coco100 --parts scores --threads 1",
        "scores",
        "where-score of all layers together {{ row('where', 'all')['where-score'] }} (where), "
        "{{ row('what', 'all')['where-score'] }} (what); what-score {{ row('where', 'all')['what-score'] }}, "
        "{{ row('what', 'all')['what-score'] }}, which hardly tells them apart",
        "where-score",
        8,
    ),
    Claim(
        "denoiser-cost",
        "A UNet of the size of Stable Diffusion 1.5 (random weights) is read on a CPU core.",
        "diffusion --parts cost --repeats 5 --threads 1",
        "cost",
        "{{ rows[1]['after the forward / forward'] }} of its forward pass where latents look like a picture, "
        "{{ rows[0]['after the forward / forward'] }} where they are random; peak {{ rows[1]['peak, MiB'] }} MiB",
        "after the forward / forward",
        3,
    ),
    Claim(
        "denoiser-memory",
        "Memory does not grow with the number of timesteps.",
        "diffusion --parts memory",
        "memory",
        "12 timesteps take {{ row(12)['peak / peak of the first'] }} of the memory of 2",
        "peak, MiB",
        2,
    ),
    Claim(
        "terrain",
        "In a small trained denoiser of height maps, the eigenvectors of both pathways follow the height, and with it "
        "the position: what a map shows, but not the paper's separation of where and what.",
        "terrain --maps 8 --sheet tests/benchmarks/images/terrain-sheet.png",
        "r2",
        "R2 at noise 0.17, all layers: what follows height {{ row('what', 'all', '0.17').height }}, slope "
        "{{ row('what', 'all', '0.17').slope }}, position {{ row('what', 'all', '0.17').position }}; where "
        "{{ row('where', 'all', '0.17').height }}, {{ row('where', 'all', '0.17').slope }}, "
        "{{ row('where', 'all', '0.17').position }}; the height of another map "
        "{{ row('what', 'all', '0.17')['height of another map'] }}, "
        "{{ row('where', 'all', '0.17')['height of another map'] }}",
        "height",
        5,
    ),
    Claim(
        "ablation-image",
        "Each default of a single image is the best of its kind, or near it.",
        "ablation --bsds {data}/bsds500_val --images 10 --parts image --threads 1",
        "image",
        "covering {{ row('default').covering }}; best of all variants {{ best('covering', '') }}",
        "covering",
        15,
    ),
    Claim(
        "stages",
        "The largest stages after the forward pass come near what the machine can do.",
        "stages --coco {data}/coco100 --images 20 --repeats 2 --threads 1",
        "stages",
        "times the floor of products, exponentials and memory: affinities of an image of 37 x 37 tokens "
        "{{ row('one picture, 37 x 37 tokens', 'operator, where')['stage / floor'] }} (where), "
        "{{ row('one picture, 37 x 37 tokens', 'operator, what')['stage / floor'] }} (what), of 68 x 46 "
        "{{ row('one picture, 68 x 46 tokens', 'operator, where')['stage / floor'] }}, "
        "{{ row('one picture, 68 x 46 tokens', 'operator, what')['stage / floor'] }}; Gram matrix of `fit` "
        "{{ row('fit, where, 20 pictures', 'second pass: Gram matrix')['stage / floor'] }}, "
        "{{ row('fit, what, 20 pictures', 'second pass: Gram matrix')['stage / floor'] }}",
        "/ forward",
        6,
    ),
    Claim(
        "growth",
        "Time of `fit` grows with the images, its memory does not; one image, with the square of its tokens.",
        "scaling --coco {data}/coco100 --sides 16 32 64 128 --limit-seconds 400",
        "slopes",
        "slope of `fit` in images {{ row('CPU seconds of fit against images: what').slope }} (what), "
        "{{ row('CPU seconds of fit against images: where').slope }} (where), of its memory "
        "{{ row('peak of fit in MiB against images: what').slope }}, "
        "{{ row('peak of fit in MiB against images: where').slope }}; "
        "of one image in tokens {{ row('seconds of one image against tokens: what').slope }} (what), "
        "{{ row('seconds of one image against tokens: where').slope }} (where), "
        "{{ row('seconds of one image against tokens: what, low rank').slope }} (what, low rank)",
        "slope",
        35,
    ),
    Claim(
        "space-load",
        "The Space answers eight visitors at once, rightly and in order, and its memory stays flat.",
        "space_load --clients 8 --minutes 5",
        "load",
        "calls, answered right: {{ row('calls of the crowd, answered right').value }}; per client "
        "{{ row('answers per client, fewest to most').value }}; overtaken "
        "{{ row('calls overtaken by one that came later').value }}; memory after the first minute "
        "{{ row('memory of the server in MiB, after the first minute').value }} MiB, at the end "
        "{{ row('the same at the end').value }} MiB",
        None,
        6,
    ),
)
