package roles

import (
	"context"
	"net/url"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/transports"
)

// probe tells whether a device can run: in a process of its own, because libraries
// of devices start for a process's life, and may end it.
func probe(_ context.Context, spec role.Spec, c *role.Control) error {
	u, err := url.Parse(transports.With(spec.URL, spec.Device))
	if err != nil {
		return err
	}
	t, err := transports.ByScheme(u.Scheme)
	if err != nil {
		return err
	}
	d, err := t.Device(u)
	if err != nil {
		return err
	}
	if un := d.Probe(); un != nil {
		return &role.Unavailable{Reason: un.Reason, Fix: un.Fix}
	}
	c.Emit(role.Event{Kind: role.Ready})
	return nil
}
