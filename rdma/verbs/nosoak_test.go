//go:build !soak

package verbs_test

const soak = false
