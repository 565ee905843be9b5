"""`python -m mbconv`, which is also what torchrun starts: `torchrun ... -m mbconv train ...`."""

from mbconv.cli import main

if __name__ == "__main__":
    main(prog_name="mbconv")
