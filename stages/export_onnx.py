"""Export a trained policy to ONNX: the policy with its sampling steps unrolled, and CLIP's towers, one file each.

    python -m stages.export_onnx                                  # runs/flow/policy to runs/flow/onnx
    python -m stages.export_onnx --steps 10 --int8                # other sampling steps; the image tower in 8 bits, too
    python -m stages.export_onnx --policy runs/l1-1/policy --out runs/l1-1/onnx --instruction "push the plate"

Each file is compared with PyTorch before the directory is published. `pipeline.inference.runtime.OnnxPolicy` runs it
without torch; docs/deploy.md tells more.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.files import refuse_foreign
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Export by params.yaml and say what was written."""
    parser = cli.parser(__doc__)
    parser.add_argument("--policy", default="runs/flow/policy", help="bundle, or hf://user/name (default: %(default)s)")
    parser.add_argument("--out", default="runs/flow/onnx", help="directory to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of sampling (default: the policy's own number)")
    parser.add_argument("--int8", action="store_true", help="write the image tower in 8 bits, too")
    parser.add_argument(
        "--encoder-weights",
        help="file of the encoder's weights, if it has no name (default: embed.encoder.pretrained, if it is a file)",
    )
    parser.add_argument(
        "--instruction",
        action="append",
        default=[],
        help="keep the text features of this one, beside those of the tasks that it learnt; may be given several times",
    )
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.encode.weights import has_name  # torch and open_clip take seconds to import
    from pipeline.inference.encoder import make_encoder
    from pipeline.inference.export import export
    from pipeline.inference.manifest import FILES
    from pipeline.inference.source import local_bundle
    from pipeline.policy.bundle import load

    refuse_foreign(Path(args.out), FILES)
    configured = params.embed.encoder.pretrained
    bundle = load(local_bundle(args.policy))
    in_fp32 = replace(bundle.spec, encoder={**bundle.spec.encoder, "precision": "fp32"})
    named = has_name(bundle.spec.encoder["model"], bundle.spec.encoder["pretrained"])
    weights = args.encoder_weights or (configured if Path(configured).is_file() and not named else None)
    encoder = make_encoder(in_fp32, "cpu", weights)
    told = export(bundle, encoder, args.instruction, Path(args.out), args.steps, args.int8)
    for name, found in told["checks"].items():
        print(f"{Path(args.out) / name}: differs from PyTorch by {found['max_difference']:.1e} at most")
    if told["int8"]:
        speed, cosine = told["int8"]["ms_per_frame"], told["int8"]["cosine_to_fp32"]
        print(
            f"{Path(args.out) / told['int8']['file']}: {speed['int8']:.1f} ms a frame, fp32 {speed['fp32']:.1f} ms; "
            f"cosine to fp32, of random pictures, at least {cosine['min']:.4f}"
        )


if __name__ == "__main__":
    cli.run(main)
