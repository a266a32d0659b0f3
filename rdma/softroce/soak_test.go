//go:build soak

package softroce

import "testing"

func TestBadNetsSoak(t *testing.T) { badNets(t, 100, 5000) }
