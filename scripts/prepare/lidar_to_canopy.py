"""Make training pairs from airborne lidar: colour.tif (highest return) and height.tif (metres above ground).

python scripts/prepare/lidar_to_canopy.py survey/*.laz -o pairs/ --resolution 0.5
python scripts/prepare/lidar_to_canopy.py autzen.laz -o pairs/ --units ft --crs EPSG:2992 --ground morphological
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from foundation.command import run_command
from foundation.files import require_own
from foundation.options import Parser, number_type, path_type
from satellite.lidar import MADE_BY, RASTERS, LidarSettings, canopy_from_lidar, save_canopy


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("clouds", type=Path, nargs="+", help="LAS or LAZ files of one survey")
    parser.add_argument("-o", "--output", type=path_type(), required=True, help="folder of the two rasters")
    parser.add_argument("--resolution", type=number_type(float, gt=0), default=0.5, help="metres per pixel")
    parser.add_argument("--crs", default="", help="of the points, as EPSG:n; default: the file's own")
    parser.add_argument("--units", default="m", help="of z: m, ft, us-ft")
    parser.add_argument("--ground", default="auto", help="auto, classes (class 2) or morphological")
    parser.add_argument(
        "--leave-out",
        type=number_type(int, ge=0, le=255),
        nargs="*",
        default=[6],
        help="classes that are no canopy (6: buildings)",
    )
    parser.add_argument(
        "--slope", type=number_type(float, gt=0), default=0.3, help="rise over run of the ground (morphological)"
    )
    parser.add_argument(
        "--window",
        type=number_type(float, gt=0),
        default=20.0,
        help="metres; wider than any crown or roof (morphological)",
    )
    given = parser.parse_args()
    settings = LidarSettings(
        given.resolution, given.crs, given.units, given.ground, tuple(given.leave_out), given.slope, given.window
    )
    for name in RASTERS:
        require_own(given.output / name, MADE_BY, None)
    canopy = canopy_from_lidar(given.clouds, settings)
    colour, height = save_canopy(canopy, given.output)
    what = height if canopy.colour is None else f"{colour} and {height}"
    print(f"{what}: {canopy.grid.height} x {canopy.grid.width} pixels of {canopy.grid.resolution:g} m")


if __name__ == "__main__":
    run_command("lidar_to_canopy", main)
