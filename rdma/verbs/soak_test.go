//go:build soak

package verbs_test

// soak asks for all sizes on all nets.
const soak = true
