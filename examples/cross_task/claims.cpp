#include "claims.hpp"

namespace cross_task {

const std::vector<claim>& paper_claims() {
    static const std::vector<claim> claims = [] {
        const std::string helps = "Multi-task training helps few-shot adaptation";
        const std::string learned = "Learned routing is better than random routing";
        const std::string fits =
            "Routing fits the training tasks better than a shared adapter of equal total size";
        const std::string heads = "MHR is at least as good as Poly";
        const std::string equal_size =
            "Routing is better than a shared adapter of equal total size";
        const std::string router =
            "With the router alone trained, several heads are better than one";
        const std::string efficient = "The router alone competes with a whole adapter";
        const std::string average = "Few-shot training of the average module is as good as of all";
        const std::string average_shared = "The average module is better than a shared adapter";
        const std::string zero_shot =
            "The average module is better than a shared adapter, zero-shot";
        const std::string further = "The same after further training, routing annealed to uniform";
        const std::string annealing = "Annealing improves the average module, zero-shot";
        const std::string aligns = "Routing aligns the gradients of the tasks";
        const std::string aligns_more = "Several heads align them more than one";
        return std::vector<claim>{
            {helps, "shared LoRA r16", "LoRA from scratch", section::few_shot},
            {learned, "Poly", "random routing", section::few_shot},
            {learned, "MHR h8", "random routing", section::few_shot},
            {fits, "Poly", "shared LoRA r128", section::fit},
            {fits, "MHR h8", "shared LoRA r128", section::fit},
            {heads, "MHR h8", "Poly", section::few_shot},
            {heads, "MHR h32", "Poly", section::few_shot},
            {equal_size, "Poly", "shared LoRA r128", section::few_shot},
            {equal_size, "MHR h8", "shared LoRA r128", section::few_shot},
            {equal_size, "MHR h32", "shared LoRA r128", section::few_shot},
            {router, "MHR-z h8", "Poly-z", section::few_shot},
            {router, "MHR-z h32", "Poly-z", section::few_shot},
            {efficient, "MHR-z h32", "shared LoRA r16", section::few_shot},
            {average, "MHR-mu h8", "MHR h8", section::few_shot},
            {average, "MHR-mu h32", "MHR h32", section::few_shot},
            {average_shared, "MHR-mu h8", "shared LoRA r16", section::few_shot},
            {average_shared, "MHR-mu h32", "shared LoRA r16", section::few_shot},
            {zero_shot, "MHR-mu h8", "shared LoRA r16", section::zero_shot},
            {zero_shot, "MHR-mu h32", "shared LoRA r16", section::zero_shot},
            {further, "MHR-mu h8, annealed", "shared LoRA r16, further", section::zero_shot},
            {further, "MHR-mu h32, annealed", "shared LoRA r16, further", section::zero_shot},
            {further, "MHR-mu h8, annealed", "shared LoRA r128, further", section::zero_shot},
            {further, "MHR-mu h8, further", "shared LoRA r16, further", section::zero_shot},
            {annealing, "MHR-mu h8, annealed", "MHR-mu h8", section::zero_shot},
            {annealing, "MHR-mu h32, annealed", "MHR-mu h32", section::zero_shot},
            {aligns, "Poly", "shared LoRA r128", section::alignment},
            {aligns, "MHR h8", "shared LoRA r128", section::alignment},
            {aligns, "MHR h32", "shared LoRA r128", section::alignment},
            {aligns_more, "MHR h8", "Poly", section::alignment},
            {aligns_more, "MHR h32", "Poly", section::alignment},
        };
    }();
    return claims;
}

} // namespace cross_task
