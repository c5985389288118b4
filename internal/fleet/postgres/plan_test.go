package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
)

// TestPlans : whatever the server believes of the table, the statements go along the
// primary key, and those that lock go through the names in their order.
func TestPlans(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	written := []any{p.Namespace, p.ProductID, "uid", 1, []string{"a"}, []pgtype.TID{{Valid: true}}, []uint32{1}, []int16{1}, []int16{0}}
	args := map[string][]any{
		namesSQL:      append(bounds(fleet.Query{Product: p}), 10),
		countSQL:      bounds(fleet.Query{Product: p}),
		totalSQL:      {p.Namespace, p.ProductID},
		applyRangeSQL: {p.Namespace, p.ProductID, "uid", "", "", "", "a", "z", 10},
		applyReadSQL:  {p.Namespace, p.ProductID, "uid", "", "", "", []string{"a"}},
		applyLockSQL:  {p.Namespace, p.ProductID, "uid", "", "", "", []string{"a"}},
		applyAlikeSQL: {p.Namespace, p.ProductID, "uid", 1, 0, "", "", "a", "z", 10, []byte{}, "", "", "", 0, 0},
		applyAllSQL:   append(slices.Clone(written), "", ""),
		applyEachSQL:  append(slices.Clone(written), []string{""}, []string{""}),

		applyAllCountedSQL:  append(slices.Clone(written), "", ""),
		applyEachCountedSQL: append(slices.Clone(written), []string{""}, []string{""}),
		writeCountedSQL:     {p.Namespace, p.ProductID, "a", 1, "", "", "", 1, 1, []string{}, 1, []string{"uid"}},
		importReadSQL:       {p.Namespace, p.ProductID, []string{"a"}, "a", "a"},
		acknowledgedSQL:     {p.Namespace, p.ProductID, []string{"uid"}},
	}
	// The nodes of each plan from the outside in. The first child of a join gives its order.
	const key, byKey = "Index Scan using batchtask_device_pkey", "Index Only Scan using batchtask_device_pkey"
	// What is counted is sorted, so that all devices are locked before.
	const count = `Insert on batchtask_acknowledged a > Subquery Scan on "*SELECT*" > GroupAggregate > Sort > Nested Loop > ` +
		"CTE Scan on written written_1 > Function Scan on unnest task > CTE Scan on written"
	want := map[string]string{
		namesSQL:      "Limit > " + byKey,
		countSQL:      "Aggregate > " + byKey,
		totalSQL:      "Aggregate > " + byKey,
		applyRangeSQL: "Limit > " + key,
		applyReadSQL:  "Nested Loop > Function Scan on unnest > " + key,
		applyLockSQL:  "Nested Loop > Function Scan on unnest > Subquery Scan on locked > LockRows > " + key,
		applyAlikeSQL: "Update on batchtask_device > Aggregate > Limit > Index Only Scan using batchtask_device_pkey on batchtask_device r > Result > " + key,
		applyAllSQL:   "Update on batchtask_device > Nested Loop > Function Scan on n > Tid Scan on batchtask_device",
		applyEachSQL:  "Update on batchtask_device > Nested Loop > Function Scan on n > Tid Scan on batchtask_device",

		applyAllCountedSQL:  "Aggregate > Update on batchtask_device > Nested Loop > Function Scan on n > Tid Scan on batchtask_device > " + count,
		applyEachCountedSQL: "Aggregate > Update on batchtask_device > Nested Loop > Function Scan on n > Tid Scan on batchtask_device > " + count,
		writeCountedSQL:     "Aggregate > Update on batchtask_device > " + key + " > " + count,
		importReadSQL:       "Result > " + byKey + " on batchtask_device d_1 > Nested Loop > Function Scan on unnest > " + key,
		acknowledgedSQL:     "GroupAggregate > Index Scan using batchtask_acknowledged_pkey on batchtask_acknowledged",
	}
	for _, n := range []int{1, 100, 30000} {
		h.all(t, "TRUNCATE batchtask_device")
		h.seed(t, p, n)
		h.all(t, "VACUUM (ANALYZE) batchtask_device")
		for sql := range args {
			got := h.plan(t, sql, args[sql])
			if got != want[sql] {
				t.Errorf("with %d devices: %s\nplan %s\nwant %s", n, sql, got, want[sql])
			}
		}
	}
}

// plan returns the nodes of the plan of a statement in a session of the store.
func (h *harness) plan(t *testing.T, sql string, args []any) string {
	t.Helper()
	var nodes []string
	err := h.store.query(t.Context(), "explaining", func(row pgx.CollectableRow) error {
		var line string
		err := row.Scan(&line)
		node, _, isNode := strings.Cut(line, "  (cost=")
		if node = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(node), "->")); isNode {
			for _, alias := range []string{" d", " n"} {
				if strings.HasSuffix(node, alias) && !strings.HasSuffix(node, "on n") {
					node = strings.TrimSuffix(node, alias)
				}
			}
			for _, alias := range []string{" on batchtask_device", ""} {
				if cut, ok := strings.CutSuffix(node, alias); ok && strings.Contains(cut, "Index") {
					node = cut
					break
				}
			}
			nodes = append(nodes, node)
		}
		return err
	}, "EXPLAIN "+sql, args...)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", sql, err))
	}
	return strings.Join(nodes, " > ")
}
