package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/transfer"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
	"batchtask.dev/operator/internal/shadow"
)

func fleetGetCommand(cluster *clusterOptions) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "get PRODUCT DEVICE",
		Short: "Show one device with its shadow",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, outputTable, outputJSON); err != nil {
				return err
			}
			return withFleet(cmd, cluster, args[0], func(ctx context.Context, p *v1alpha1.Product, from transfer.Fleet) error {
				d, err := from.Get(ctx, args[1])
				if errors.Is(err, fleet.ErrDeviceGone) {
					return fmt.Errorf("there is no device %q in Product %q of namespace %q; names are told apart by case, and \"batchtask fleet list %s\" lists them",
						args[1], p.Name, p.Namespace, p.Name)
				}
				if err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), output, p, d)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table or json")
	return cmd
}

// shownDevice is a device with its shadow in JSON.
type shownDevice struct {
	Name      string          `json:"deviceName"`
	ProductID string          `json:"productID"`
	Disabled  bool            `json:"disabled"`
	Version   int64           `json:"version"`
	Timestamp int64           `json:"timestamp"`
	State     shownState      `json:"state"`
	Metadata  shadow.Metadata `json:"metadata"`
}

type shownState struct {
	Reported shadow.Object `json:"reported,omitempty"`
	Desired  shadow.Object `json:"desired,omitempty"`
	Delta    shadow.Object `json:"delta,omitempty"`
}

func show(w io.Writer, output string, p *v1alpha1.Product, d devicefile.Device) error {
	doc, err := shadow.Parse(d.Shadow)
	if err != nil {
		return fmt.Errorf("device %q: %w", d.Name, err)
	}
	state := shownState{Reported: doc.Reported, Desired: doc.Desired}
	if delta := doc.Delta(); delta != nil {
		state.Delta = delta.State
	}
	if output == outputJSON {
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(shownDevice{d.Name, p.Spec.ProductID, d.Disabled, doc.Version, doc.Timestamp, state, doc.Metadata})
	}
	rows := newRows(w, outputTable, "Device:", d.Name)
	for _, row := range [][2]string{
		{"Product:", fmt.Sprintf("%s (%s)", p.Name, p.Spec.ProductID)},
		{"Disabled:", strconv.FormatBool(d.Disabled)},
		{"Version:", strconv.FormatInt(doc.Version, 10)},
		{"Changed:", when(doc.Timestamp)},
	} {
		if err := rows.write(nil, row[:]...); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name  string
		state shadow.Object
	}{{"Reported:", state.Reported}, {"Desired:", state.Desired}, {"Delta:", state.Delta}} {
		text := "-"
		if part.state != nil {
			var err error
			if text, err = compact(part.state); err != nil {
				return err
			}
		}
		if err := rows.write(nil, part.name, text); err != nil {
			return err
		}
	}
	return rows.flush()
}

// compact returns a part of a shadow on one line, as it was written: < and & are themselves.
func compact(state shadow.Object) (string, error) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(state)
	return strings.TrimSuffix(b.String(), "\n"), err
}
