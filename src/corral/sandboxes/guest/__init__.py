"""What every virtual machine of ours is made of: a kernel, an initramfs, a root image, and how the guest is greeted."""
