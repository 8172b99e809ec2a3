"""pod: slices of Cloud TPUs, from booking to deletion, by gcloud."""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from rich.console import Console

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.hardware import Slice, parse_slice
from llama_jax.loading import find, load
from llama_jax.pods import cloud as gcloud
from llama_jax.pods import launcher, record
from llama_jax.pods.cloud import Cloud, CloudError
from llama_jax.pods.record import Pod
from llama_jax.pods.watch import ATTEMPTS, GaveUp, Watch, alone


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(action: str, does: str) -> argparse.ArgumentParser:
        added = actions.add_parser(action, help=does, description=does)
        added.add_argument(
            "--dry-run", action="store_true", help="print the commands of gcloud, and no more"
        )
        return added

    def add_named(action: str, does: str) -> argparse.ArgumentParser:
        added = add(action, does)
        added.add_argument("name", metavar="NAME", help="of the pod")
        return added

    _of_create(add("create", "book slices for an experiment, if it fits them"))
    adopt = add_named("adopt", "take a TPU VM that exists")
    _for_experiment(adopt)
    _place(adopt)
    install = add_named("install", "put this code and its environment on all hosts")
    install.add_argument(
        "--python", metavar="PATH", help="of an environment that the hosts have already"
    )
    _poll(install)
    _of_run(add_named("run", "start the experiment on all hosts, or go on with it"))
    add_named("status", "say what the pod and each host does")
    logs = add_named("logs", "print the end of the logs")
    logs.add_argument("--worker", type=options.number(int, 0), help="of this host only")
    logs.add_argument("--lines", type=options.number(int, 1), default=20)
    logs.add_argument("--follow", action="store_true", help="of one host, until its run ends")
    add_named("stop", "have the run save and end, and wait for that")
    _yes(add_named("delete", "free the slices, and forget the pod"))
    watch = add_named("watch", "keep the run going to its end: book, install and start it again")
    watch.add_argument(
        "--attempts",
        type=options.number(int, 1),
        default=ATTEMPTS,
        help=f"failures in a row without a new checkpoint before giving up (default: {ATTEMPTS})",
    )
    _poll(watch)
    does = "print what Kubernetes or SkyPilot needs, which book and restart by themselves"
    manifest = actions.add_parser("manifest", help=does, description=does)
    manifest.set_defaults(dry_run=True)
    _for_experiment(manifest)
    _new(manifest)
    manifest.add_argument("--to", required=True, choices=("jobset", "skypilot"))
    manifest.add_argument("--image", help="of --to jobset: see tpu_setup/Dockerfile")
    manifest.add_argument("--spot", action="store_true", help="on spot slices")


def _of_create(create: argparse.ArgumentParser) -> None:
    _for_experiment(create)
    _place(create)
    _new(create)
    how = create.add_mutually_exclusive_group()
    for provisioning in ("spot", "reserved"):
        how.add_argument(
            f"--{provisioning}",
            dest="provisioning",
            action="store_const",
            const=provisioning,
            default="on-demand",
            help=f"book {provisioning} slices (default: on demand)",
        )
    create.add_argument("--service-account", metavar="EMAIL", help="that the hosts act as")
    create.add_argument("--price", type=options.number(float, 0), help="of one chip for one hour")
    _yes(create)


def _of_run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--coordinator",
        metavar="ADDRESS:PORT",
        help="of the first host, where the hosts are no TPU VMs",
    )
    options.overrides(run)
    run.add_argument("--accept-changes", action="store_true", help="as of train")
    run.add_argument("--profile", metavar="STEPS", help="as of train")


def _for_experiment(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--workdir", required=True, help="gs://BUCKET/..., or a path that all hosts share"
    )


def _new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slice", required=True, metavar="SLICE", help="e.g. v5p:4x4x4")
    parser.add_argument("--name", help="(default: of the experiment)")


def _place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zone", help="(default: gcloud's compute/zone)")
    parser.add_argument("--project", help="(default: gcloud's core/project)")


def _poll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--poll",
        type=options.positive(),
        default=30.0,
        metavar="SECONDS",
        help="between two looks (default: 30)",
    )


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    return ACTIONS[args.action](args, Cloud(args.dry_run)) or 0


# The actions


def create(args: argparse.Namespace, cloud: Cloud) -> None:
    target = _tpus(args)
    if target.chip.runtime is None:
        raise UserError(
            f"--slice: the Cloud TPU API has no {target.chip.name}; llama-jax pod manifest writes "
            "what Kubernetes needs"
        )
    pod = _pod(args, _name(args), target, args.provisioning, args.service_account)
    if record.file(pod.name).exists():
        raise UserError(f"--name: {pod.name} is known already; give another, or delete that pod")
    if not cloud.dry_run:
        _check_plan(args)
        _ask(args, f"book {pod.slice} ({pod.provisioning}) in {pod.zone} as {pod.name}?")
        record.write(pod)  # first: what is booked must not be forgotten
    try:
        gcloud.create(cloud, pod)
    except (CloudError, UserError):
        record.forget(pod)
        raise
    cloud.tell(f"booked {pod.name}; when it is granted: llama-jax pod install {pod.name}")


def adopt(args: argparse.Namespace, cloud: Cloud) -> None:
    zone, project = _zone_and_project(args)
    record.check_names(args.name, zone, project)
    target = gcloud.adopted_slice(cloud, args.name, zone, project)
    if target is not None:
        pod = _pod(args, args.name, target, "adopted", None)
        record.write(pod)
        print(f"{pod.name} is a {pod.slice} of {len(pod.hosts)} hosts")


def install(args: argparse.Namespace, cloud: Cloud) -> None:
    pod = dataclasses.replace(record.read(args.name), python=args.python)
    if not cloud.dry_run:
        record.write(pod)
        launcher.wait_until_granted(cloud, pod, args.poll)
    launcher.install(cloud, pod)
    cloud.tell(f"installed on {len(pod.hosts)} hosts; next: llama-jax pod run {pod.name}")


def start(args: argparse.Namespace, cloud: Cloud) -> None:
    pod = record.read(args.name)
    pod = dataclasses.replace(
        pod,
        coordinator=args.coordinator or pod.coordinator,
        overrides=(*pod.overrides, *args.overrides),
    )
    once = ["--accept-changes"] if args.accept_changes else []
    once += ["--profile", args.profile] if args.profile else []
    if not cloud.dry_run:
        record.write(pod)
    launcher.run(cloud, pod, once)
    cloud.tell(
        f"started on {len(pod.hosts)} hosts; llama-jax pod logs {pod.name} --follow; "
        f"llama-jax pod watch {pod.name} keeps it going"
    )


def status(args: argparse.Namespace, cloud: Cloud) -> None:
    pod = record.read(args.name)
    state = gcloud.state(cloud, pod)
    cloud.tell(f"{pod.name}: {pod.slice} in {pod.zone}, {pod.provisioning}: {state or 'gone'}")
    if state == launcher.GRANTED:
        for host, found in launcher.states(cloud, pod).items():
            cloud.tell(f"  {host}: {found}")
    if not cloud.dry_run:
        _print_goodput(pod)


def _print_goodput(pod: Pod) -> None:
    """Print what the time of the run went into, if its workdir can be read from here."""
    from llama_jax.place import place
    from llama_jax.run.goodput import goodput_table, read_attempts

    try:
        attempts = read_attempts(place(pod.workdir, "workdir"))
    except (UserError, OSError) as e:
        print(e)
        return
    if attempts:
        print(f"step {attempts[-1].step}")
        Console(markup=False).print(goodput_table(attempts))


def logs(args: argparse.Namespace, cloud: Cloud) -> int:
    pod = record.read(args.name)
    if args.worker is not None and args.worker >= len(pod.hosts):
        raise UserError(f"--worker: got {args.worker}, expected 0 to {len(pod.hosts) - 1}")
    if args.follow:
        host = pod.hosts[args.worker or 0]
        return gcloud.stream(cloud, pod, host, "logs", str(args.lines), "follow")
    hosts = pod.hosts if args.worker is None else [pod.hosts[args.worker]]
    answers, failures = gcloud.on_all(
        hosts, lambda host: gcloud.ssh(cloud, pod, host, "logs", str(args.lines))
    )
    for host in hosts:
        cloud.tell(f"==> {host} <==\n{answers.get(host, failures.get(host))}")
    return 1 if failures else 0


def stop(args: argparse.Namespace, cloud: Cloud) -> None:
    pod = record.read(args.name)
    with alone(pod):
        for host, found in launcher.stop(cloud, pod).items():
            cloud.tell(f"{host}: {found}")


def delete(args: argparse.Namespace, cloud: Cloud) -> None:
    pod = record.read(args.name)
    with alone(pod):
        if not cloud.dry_run:
            _ask(args, f"delete {pod.name} and what its disks hold? {pod.workdir} stays.")
            if gcloud.state(cloud, pod) is None:
                record.forget(pod)
                return
        gcloud.delete(cloud, pod)
        if not cloud.dry_run:
            record.forget(pod)


def watch(args: argparse.Namespace, cloud: Cloud) -> int:
    pod = record.read(args.name)
    if cloud.dry_run:
        gcloud.state(cloud, pod)
        launcher.states(cloud, pod)
        return 0
    try:
        with alone(pod):
            Watch(cloud, pod, args.attempts).keep_going(args.poll)
    except GaveUp as e:
        print(f"llama-jax pod watch: {e}", file=sys.stderr)
        return 1
    return 0


def manifest(args: argparse.Namespace, cloud: Cloud) -> None:
    from llama_jax.pods.manifest import jobset, skypilot

    if (args.to == "jobset") != (args.image is not None):
        raise UserError("--image: --to jobset needs one, and only that; see tpu_setup/Dockerfile")
    target = _tpus(args)
    train = launcher.train_arguments(args.experiment, args.overrides, args.workdir, target)
    if args.to == "jobset":
        print(jobset(_name(args), target, args.spot, args.image, train), end="")
    else:
        print(skypilot(_name(args), target, args.spot, train), end="")


ACTIONS = {
    "create": create,
    "adopt": adopt,
    "install": install,
    "run": start,
    "status": status,
    "logs": logs,
    "stop": stop,
    "delete": delete,
    "watch": watch,
    "manifest": manifest,
}


# What they share


def _pod(
    args: argparse.Namespace, name: str, target: Slice, provisioning: str, account: str | None
) -> Pod:
    zone, project = _zone_and_project(args)
    path = find(args.experiment)
    return Pod(
        name=name,
        zone=zone,
        project=project,
        slice=target.name,
        provisioning=provisioning,
        experiment=str(path.resolve()) if path == Path(args.experiment) else args.experiment,
        overrides=tuple(args.overrides),
        workdir=args.workdir,
        service_account=account,
    )


def _tpus(args: argparse.Namespace) -> Slice:
    """Return the slice. Raise UserError if it is of GPUs, or the experiment is not for it."""
    target = parse_slice(args.slice)
    if not target.chip.dimensions:
        raise UserError(f"--slice: a pod is of TPUs, and {target.name} is not")
    load(args.experiment, args.overrides, args.slice)
    return target


def _name(args: argparse.Namespace) -> str:
    stem = re.sub("[^a-z0-9]+", "-", Path(args.experiment).stem.lower()).strip("-")
    return args.name or stem


def _zone_and_project(args: argparse.Namespace) -> tuple[str, str]:
    found = []
    for option, given, name in (
        ("--zone", args.zone, "compute/zone"),
        ("--project", args.project, "core/project"),
    ):
        value = given or gcloud.configured(name)
        if not value:
            raise UserError(f"{option}: give one, or gcloud config set {name} VALUE")
        found.append(value)
    return found[0], found[1]


def _check_plan(args: argparse.Namespace) -> None:
    """Print the plan. Raise UserError if the experiment does not fit."""
    from llama_jax.plan.slices import plan_all
    from llama_jax.plan.text import lines

    (plan,) = plan_all(args.experiment, args.overrides, [args.slice], args.price)
    print("\n".join(lines(plan)))
    if not plan.fits:
        remedy = plan.remedies[0] if plan.remedies else "a larger slice"
        raise UserError(f"--slice: {plan.experiment} does not fit {plan.slice}; {remedy} would")


def _ask(args: argparse.Namespace, question: str) -> None:
    """Raise UserError unless the user agrees."""
    if args.yes:
        return
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not done; --yes does it without asking")
