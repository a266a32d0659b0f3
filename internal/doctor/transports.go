package doctor

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/internal/transports"
)

// startProbes asks every device of every transport whether it runs.
func startProbes(ctx context.Context, h *Host) (out []<-chan Transport) {
	limit := probePatience
	if h.patience != 0 {
		limit = h.patience
	}
	for _, t := range h.Transports {
		list := bounded(ctx, checkPatience, func(context.Context) []transports.Device { return t.Devices() },
			func(string) []transports.Device { return nil })
		devices := <-list
		if len(devices) == 0 {
			out = append(out, answer(Transport{
				Transport: t.Scheme, Default: true, Reason: "its devices cannot be listed: /sys does not answer", Fix: "see the checks of rdma devices",
			}))
		}
		for _, d := range devices {
			row := Transport{Transport: t.Scheme, Device: d.Name, Default: d.Default}
			out = append(out, bounded(ctx, limit, func(ctx context.Context) Transport {
				row := row
				un, err := probe(ctx, h, t.Scheme, d)
				switch {
				case err != nil:
					row.Reason, row.Fix = "the attempt to start it failed: "+err.Error(), "see the check of its library"
				case un != nil:
					row.Reason, row.Fix = un.Reason, un.Fix
				default:
					row.Runs = true
				}
				return row
			}, func(why string) Transport {
				row := row
				row.Reason, row.Fix = why, "see the checks above"
				return row
			}))
		}
	}
	return out
}

// probe asks default devices here: they start nothing.
func probe(ctx context.Context, h *Host, scheme string, d transports.Device) (*transports.Unavailable, error) {
	if d.Default {
		return d.Probe(), nil
	}
	return h.Probe(ctx, scheme, d.Name)
}

func answer(t Transport) <-chan Transport {
	c := make(chan Transport, 1)
	c <- t
	return c
}

// ProbeHere asks one device in this process. It is what Host.Probe runs elsewhere.
func ProbeHere(scheme, device string) (*transports.Unavailable, error) {
	t, err := transports.ByScheme(scheme)
	if err != nil {
		return nil, err
	}
	for _, d := range t.Devices() {
		if d.Name == device {
			return d.Probe(), nil
		}
	}
	return nil, fmt.Errorf("%s has no device %q any more", scheme, device)
}
