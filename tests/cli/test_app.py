import subprocess
import sys

import foveate


def test_help_names_the_commands_and_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from foveate.cli import main\n"
        "sys.argv = ['foveate', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo", "run", "list", "eval", "train"):
        assert command in done.stdout
    assert "heavy: []" in done.stdout


def test_version(run):
    assert run("--version").output.strip() == f"foveate {foveate.__version__}"


def test_no_command_shows_the_help(run):
    assert "demo" in run().output


def test_help_of_every_command(run):
    for command in (["demo"], ["run"], ["list"], ["eval"], ["train", "tiny"]):
        found = run(*command, "--help")
        assert found.exit_code == 0, found.output
        assert "--" in found.output
