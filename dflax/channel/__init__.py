"""What happens to messages on their way."""

from dflax.channel.channel import Channel, chain, gaussian_noise, lossy, perfect
