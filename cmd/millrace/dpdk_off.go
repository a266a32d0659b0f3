//go:build !dpdk

package main

// linkedDPDK tells whether this program is the one with libdpdk.
const linkedDPDK = false
