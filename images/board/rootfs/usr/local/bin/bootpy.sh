#!/bin/sh
# Runs the boot.py of the FAT partition, if somebody put one there.
[ ! -f /boot/boot.py ] || exec python3 /boot/boot.py
