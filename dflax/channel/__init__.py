"""What happens to messages on their way."""

from dflax.channel.channel import Channel, chain, finite_only, gaussian_noise, lossy, perfect
