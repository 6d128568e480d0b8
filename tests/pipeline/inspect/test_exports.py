import subprocess
import sys


def test_names_are_exported_and_imported_only_when_used() -> None:
    code = (
        "import sys, cal_pipeline.inspect as inspect\n"
        "assert {'load_annotated', 'sample_frame', 'token_frame'} <= set(dir(inspect))\n"
        "assert not {'pandas', 'pyarrow', 'torch'} & set(sys.modules)\n"
        "assert inspect.load_annotated.__module__ == 'cal_pipeline.inspect.frames'\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
