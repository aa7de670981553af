"""The command as a module: `python -m hf_cifar` is `hf-cifar`, and `accelerate launch -m hf_cifar
train RECIPE` trains in several processes.
"""

from hf_cifar.cli.main import main

if __name__ == "__main__":
    main()
