"""What happens to messages on their way."""

from dflax.channel.broadcast import broadcast
from dflax.channel.channel import Channel, chain, finite_only, gaussian_noise, lossy, perfect
