package router

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"batchtask.dev/operator/internal/fleet"
)

// ResultsOf implements [fleet.ResultsKeeper].
func (r *Router) ResultsOf(ctx context.Context, p fleet.Product) (fleet.Results, error) {
	found, err := r.resultsOf(ctx, p)
	if err != nil || found == nil {
		return nil, err
	}
	return &results{router: r, product: p, last: found}, nil
}

func (r *Router) resultsOf(ctx context.Context, p fleet.Product) (fleet.Results, error) {
	s, err := r.of(ctx, p)
	if err != nil {
		return nil, err
	}
	if keeper, ok := s.(fleet.ResultsKeeper); ok {
		return keeper.ResultsOf(ctx, p)
	}
	return nil, nil //nolint:nilnil // no error, and no results
}

// results are those of a product's tasks, in its database as it is at each call: a task
// may run for longer than a connection or a password is good for. Those of a product that
// is deleted meanwhile are in the database that it had last, so that a task can come to
// its end.
type results struct {
	router  *Router
	product fleet.Product

	mu   sync.Mutex
	last fleet.Results
}

func (r *results) now(ctx context.Context) (fleet.Results, error) {
	found, err := r.router.resultsOf(ctx, r.product)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case errors.Is(err, fleet.ErrNoProduct):
		return r.last, nil
	case err != nil:
		return nil, err
	case found == nil:
		return nil, fmt.Errorf("the devices of product ID %s are not in a database any more", r.product.ProductID)
	}
	r.last = found
	return found, nil
}

// Record implements [fleet.Results].
func (r *results) Record(ctx context.Context, taskUID string, p fleet.Product, of fleet.ResultRange) error {
	in, err := r.now(ctx)
	if err != nil {
		return err
	}
	return in.Record(ctx, taskUID, p, of)
}

// Take implements [fleet.Results].
func (r *results) Take(ctx context.Context, run fleet.ResultsRun, p fleet.Product, after string, failures int) (fleet.ResultTotals, error) {
	in, err := r.now(ctx)
	if err != nil {
		return fleet.ResultTotals{}, err
	}
	return in.Take(ctx, run, p, after, failures)
}

// Tasks implements [fleet.Results].
func (r *results) Tasks(ctx context.Context, afterUID string) ([]fleet.KeptResults, error) {
	in, err := r.now(ctx)
	if err != nil {
		return nil, err
	}
	return in.Tasks(ctx, afterUID)
}

// Delete implements [fleet.Results].
func (r *results) Delete(ctx context.Context, kept fleet.KeptResults) error {
	in, err := r.now(ctx)
	if err != nil {
		return err
	}
	return in.Delete(ctx, kept)
}
