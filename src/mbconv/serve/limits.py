"""What the server accepts: bytes, pixels, pictures, seconds."""

from dataclasses import dataclass

from mbconv.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`upload` bytes and `pixels` a picture, `pictures` a request, `queue` pictures waiting in all.

    An upload has `seconds` to arrive, and an answer as many to be there. A request never brings
    more than the queue holds. Raises UserError for what is not positive.
    """

    upload: int = 16_000_000
    pixels: int = 50_000_000
    pictures: int = 32
    queue: int = 256
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"The server's limit {name} is {value}; it must be positive.")
        object.__setattr__(self, "pictures", min(self.pictures, self.queue))

    @property
    def request(self) -> int:
        """Bytes of one request, with all its pictures."""
        return 4 * self.upload

    @property
    def held(self) -> int:
        """Bytes of uploads in memory, of all clients together."""
        return 16 * self.upload
